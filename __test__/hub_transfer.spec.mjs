/** How files get from the Hub into the cache: broken connections, wrong bytes, a full disk, aborts. No test reaches the real Hub. */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import {
  assertComplete,
  blobs,
  FIXTURE,
  hubWith,
  ID,
  NEEDED,
  parts,
  pulling,
  repository,
  WEIGHTS,
} from "./support/hub.mjs";
import {
  COMMIT,
  cutAfter,
  etagOf,
  gitHash,
  refuse,
  sendJson,
  sendUntil,
  sha256,
  stallAfter,
} from "./support/hub_server.mjs";
import { api, embedderError } from "./support/models.mjs";
import { until } from "./support/processes.mjs";

const { pull } = api;

test("a transfer that is cut off resumes, and the whole file is hashed", async () => {
  const { hub, options } = await hubWith();
  hub.fault("cdn", /safetensors/, cutAfter(60_000));
  hub.fault("cdn", /safetensors/, cutAfter(100_000));
  assertComplete(await pull(ID, options));
  const ranges = hub.requests.filter(({ host }) => host === "cdn").map(({ range }) => range);
  assert.deepEqual(ranges, [undefined, "bytes=60000-", "bytes=100000-"]);
  assert.deepEqual(parts(options), []);
});

test("a transfer starts over if the server ignores the range", async () => {
  const { hub, options } = await hubWith();
  hub.fault("cdn", /safetensors/, cutAfter(60_000));
  hub.fault("cdn", /safetensors/, (response, { file }) => response.end(file));
  assertComplete(await pull(ID, options));
});

test("a server that starts over and breaks off each time is given up on", async () => {
  const { hub, options } = await hubWith();
  const breakOff = (response, { file }) => {
    response.writeHead(200, { "content-length": file.length });
    response.write(file.subarray(0, 60_000), () => setTimeout(() => response.destroy(), 20));
  };
  hub.fault("cdn", /safetensors/, breakOff, 99);
  await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "connection to http://localhost"));
  assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 5, "one, and four that brought nothing new");
});

test("after several attempts without progress a transfer fails, keeps its bytes, and the next one resumes", async () => {
  const { hub, options } = await hubWith();
  hub.fault("cdn", /safetensors/, cutAfter(60_000));
  hub.fault("cdn", /safetensors/, (response) => refuse(response, 503, "", "", { "retry-after": "0" }), 4);
  await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "answered 503", "model.safetensors"));
  assert.deepEqual(parts(options), [`${sha256(WEIGHTS)}.semantic-search.incomplete`]);
  hub.requests.length = 0;
  assertComplete(await pull(ID, options));
  assert.deepEqual(hub.fileRequests(), ["hub model.safetensors bytes=60000-", "cdn model.safetensors bytes=60000-"]);
});

test("wrong bytes left by an earlier download are thrown away", async () => {
  const { hub, options } = await hubWith();
  const part = path.join(repository(options), "blobs", `${sha256(WEIGHTS)}.semantic-search.incomplete`);
  for (const rubbish of [Buffer.alloc(1000, 7), Buffer.alloc(WEIGHTS.length, 7), Buffer.alloc(WEIGHTS.length + 1, 7)]) {
    rmSync(options.cacheFolder, { recursive: true, force: true });
    mkdirSync(path.dirname(part), { recursive: true });
    writeFileSync(part, rubbish);
    hub.requests.length = 0;
    assertComplete(await pull(ID, options));
    assert.equal(hub.fileRequests().at(-1), "cdn model.safetensors", "in the end from the beginning");
  }
});

for (const [file, host] of [
  ["model.safetensors", "cdn"],
  ["tokenizer_config.json", "hub"],
]) {
  const wrong = (response, { file: bytes }) => {
    const changed = Buffer.from(bytes);
    changed[10] ^= 1;
    response.end(changed);
  };
  const pattern = new RegExp(file);

  test(`${file}: wrong bytes are downloaded again`, async () => {
    const { hub, options } = await hubWith();
    hub.fault(host, pattern, wrong);
    assertComplete(await pull(ID, options));
  });

  test(`${file}: bytes that stay wrong are an error and leave nothing behind`, async () => {
    const { hub, options } = await hubWith();
    hub.fault(host, pattern, wrong, 99);
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", file, etagOf(FIXTURE[file])));
    assert.ok(!blobs(options).some((name) => name.startsWith(etagOf(FIXTURE[file]))));
    assert.ok(!existsSync(path.join(repository(options), "snapshots", COMMIT, file)));
  });
}

test("more bytes than the file has are an error", async () => {
  const { hub, options } = await hubWith();
  const endless = (response) => {
    const timer = setInterval(() => response.write(Buffer.alloc(100_000)), 5);
    response.on("close", () => clearInterval(timer));
  };
  hub.fault("cdn", /safetensors/, endless, 99);
  await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "found more bytes"));
});

test("a stalled connection is abandoned and tried again", async (t) => {
  process.env.HF_HUB_DOWNLOAD_TIMEOUT = "1";
  t.after(() => delete process.env.HF_HUB_DOWNLOAD_TIMEOUT);
  const { hub, options } = await hubWith();
  hub.fault("cdn", /safetensors/, stallAfter(60_000));
  hub.fault("hub", /api/, () => {});
  assertComplete(await pull(ID, options));
  assert.equal(hub.requests.at(-1).range, "bytes=60000-");
});

test("429 and 503 are retried after the time that they ask for", async () => {
  const { hub, options } = await hubWith();
  const at = [];
  const busy = (status, wait) => (response) => {
    at.push(Date.now());
    refuse(response, status, "", "", { "retry-after": wait });
  };
  hub.fault("hub", /api/, busy(429, "1"));
  hub.fault("hub", /api/, (response) => refuse(response, 429, "", "", { ratelimit: '"api";r=0;t=1' }));
  hub.fault("hub", /resolve.*safetensors/, busy(503, new Date(Date.now() + 3000).toUTCString()));
  const started = Date.now();
  assertComplete(await pull(ID, options));
  assert.ok(Date.now() - started >= 2000, "a second for each of the first two");
  assert.equal(at.length, 2);
});

test("a server that asks for an hour is not waited for", async () => {
  const { hub, options } = await hubWith();
  hub.fault("hub", /api/, (response) => refuse(response, 429, "", "", { "retry-after": "3600" }));
  await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "429", "retry in 3600 s", "HF_TOKEN"));
  assert.equal(hub.requests.length, 1);
});

test("progress is reported in bytes of the whole model", async () => {
  const { hub, options } = await hubWith();
  hub.fault("cdn", /safetensors/, cutAfter(60_000));
  const reports = [];
  await pull(ID, { ...options, onProgress: (progress) => reports.push(progress) });
  const total = NEEDED.reduce((sum, name) => sum + FIXTURE[name].length, 0);
  assert.deepEqual(reports.at(-1), { file: reports.at(-1).file, done: total, total });
  for (const [index, { done }] of reports.entries())
    assert.ok(index === 0 || done >= reports[index - 1].done, "goes on");
  assert.ok(reports.every(({ file, total: all }) => NEEDED.includes(file) && all === total));
});

test("an error thrown by onProgress ends the download", async () => {
  const { options } = await hubWith();
  const error = new Error("no more");
  const onProgress = () => {
    throw error;
  };
  await assert.rejects(pull(ID, { ...options, onProgress }), (thrown) => thrown === error);
  assertComplete(await pull(ID, options));
});

test("free disk space is checked before large files are downloaded", async () => {
  const { hub, options } = await hubWith();
  hub.fault("hub", /api/, (response) => {
    const siblings = NEEDED.map((rfilename) => ({
      rfilename,
      size: FIXTURE[rfilename].length,
      blobId: gitHash(FIXTURE[rfilename]),
    }));
    const weights = siblings.find(({ rfilename }) => rfilename === "model.safetensors");
    weights.size = 4e15;
    weights.lfs = { sha256: sha256(WEIGHTS), size: 4e15 };
    sendJson(response, { sha: COMMIT, siblings });
  });
  await assert.rejects(
    pull(ID, options),
    embedderError("DOWNLOAD_FAILED", "takes another 4000000000", "free", options.cacheFolder),
  );
  assert.ok(!hub.fileRequests().some((one) => one.includes("safetensors")));
});

test("a full disk leaves nothing half-written", {
  skip: process.platform === "win32" && "needs ulimit",
}, async () => {
  // The limit of a process on the length of its files: the kernel refuses to write beyond, as a full disk does.
  const limited = (file, args) => ["bash", ["-c", 'ulimit -f 100; exec "$@"', "bash", file, ...args]];
  const { hub, options } = await hubWith();
  const { code, message } = await pulling(options, {}, limited).result;
  assert.equal(code, "DOWNLOAD_FAILED", message);
  assert.match(message, /no space for model\.safetensors.*EFBIG/);
  assert.ok(!blobs(options).some((name) => name.startsWith(sha256(WEIGHTS))), "neither the blob nor a part of it");
  assert.ok(!existsSync(path.join(repository(options), "refs/main")));
  hub.requests.length = 0;
  assertComplete(await pull(ID, options));
  assert.deepEqual(hub.fileRequests(), ["hub model.safetensors", "cdn model.safetensors"]);
});

const aborted = (error) => error.name === "AbortError" && error.code === "ABORT_ERR" && error.cause === "enough";

const stages = {
  "before it starts": (_hub, abort) => abort(),
  "while the model is looked up": (hub, abort) => hub.fault("hub", /api/, abort),
  "while it waits for a busy server": (hub, abort) =>
    hub.fault("hub", /api/, (response) => {
      refuse(response, 503, "", "", { "retry-after": "30" });
      setTimeout(abort, 100);
    }),
  "while the weights are downloaded": (hub, abort) => hub.fault("cdn", /safetensors/, sendUntil(100_000, abort)),
};
for (const [stage, arrange] of Object.entries(stages)) {
  test(`a download can be aborted ${stage}`, async () => {
    const { hub, options } = await hubWith();
    const controller = new AbortController();
    arrange(hub, () => controller.abort("enough"));
    const started = Date.now();
    await assert.rejects(pull(ID, { ...options, signal: controller.signal }), aborted);
    assert.ok(Date.now() - started < 20_000);
    assertComplete(await pull(ID, options));
  });
}

test("a download can be aborted while it waits for another process", async () => {
  const { hub, options } = await hubWith();
  hub.fault("cdn", /safetensors/, stallAfter(100_000));
  const first = new AbortController();
  const downloading = pull(ID, { ...options, signal: first.signal });
  await until(() => hub.requests.some(({ host }) => host === "cdn"), "the download");
  await assert.rejects(pull(ID, { ...options, signal: AbortSignal.timeout(500) }), { code: "ABORT_ERR" });
  first.abort("enough");
  await assert.rejects(downloading, aborted);
});
