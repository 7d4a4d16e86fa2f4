/** Models by name, against a server that speaks the Hub's protocol and misbehaves. No test reaches the real Hub. */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { after, describe, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import {
  COMMIT,
  cutAfter,
  etagOf,
  filesIn,
  gitHash,
  refuse,
  sendJson,
  sendUntil,
  sha256,
  stallAfter,
  startHub,
  startProxy,
} from "./hub_server.mjs";
import { api, embedderError, model, ROOT, temporaryFolder, withEmbedder } from "./models.mjs";

const { pull, Embedder, KNOWN_MODELS } = api;
const { proxyFor } = createRequire(import.meta.url)("../dist/lib/hub/proxy.js");

const ID = "org/model";
const FIXTURE = filesIn(path.join(ROOT, "tests/fixtures/bert_mean"));
const WEIGHTS = FIXTURE["model.safetensors"];
/** What loading reads of the fixture. */
const NEEDED = [
  "1_Pooling/config.json",
  "config.json",
  "config_sentence_transformers.json",
  "model.safetensors",
  "modules.json",
  "sentence_bert_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
];
/** What repositories have besides. */
const OTHERS = {
  ".gitattributes": Buffer.from("*.safetensors filter=lfs\n"),
  "README.md": Buffer.from("# A model\n"),
  "pytorch_model.bin": Buffer.alloc(60_000, 1),
  "tf_model.h5": Buffer.alloc(60_000, 2),
  "openvino/openvino_model.bin": Buffer.alloc(60_000, 3),
  "onnx/model.onnx": Buffer.alloc(60_000, 4),
  "onnx/model.onnx_data": Buffer.alloc(60_000, 5),
  "onnx/model_fp16.onnx": Buffer.alloc(60_000, 6),
};

// The environment of whoever runs the tests must not matter, in this process and in those it starts.
for (const name of Object.keys(process.env)) {
  if (/^(HF_|HUGGING|TRANSFORMERS_OFFLINE|(https?|all|no)_proxy$)/i.test(name)) delete process.env[name];
}
process.env.HF_HOME = temporaryFolder();

const servers = [];
after(() => {
  for (const server of servers) server.close();
});

/** A Hub with one model, and options that pull from it into a cache of its own. */
async function hubWith(changes = {}, settings = {}) {
  const { id = ID, commit, branches, ...server } = settings;
  const files = { ...FIXTURE, ...OTHERS, ...changes };
  for (const name of Object.keys(files)) if (files[name] === null) delete files[name];
  const hub = await startHub({ [id]: { files, ...(commit && { commit }), ...(branches && { branches }) } }, server);
  servers.push(hub);
  return { hub, options: { endpoint: hub.endpoint, cacheFolder: path.join(temporaryFolder(), "hub"), token: false } };
}

/** All files below a folder, links included, with `/`. */
function tree(folder) {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => !entry.isDirectory())
    .map((entry) =>
      path
        .relative(folder, path.join(entry.parentPath ?? entry.path, entry.name))
        .split(path.sep)
        .join("/"),
    )
    .sort();
}

const repository = ({ cacheFolder }) => path.join(cacheFolder, "models--org--model");
function blobs(options) {
  const folder = path.join(repository(options), "blobs");
  return existsSync(folder) ? readdirSync(folder) : [];
}
const parts = (options) => blobs(options).filter((name) => name.includes("incomplete"));

function assertComplete(folder, files = FIXTURE) {
  for (const name of NEEDED) assert.deepEqual(readFileSync(path.join(folder, name)), files[name], name);
}

/** Starts `pull` in a process of its own. */
function pulling(options, env = {}, wrap = (file, args) => [file, args]) {
  const { onProgress, ...rest } = options;
  const body = `require("./dist/embedder.js").pull(${JSON.stringify(ID)}, ${JSON.stringify(rest)})
    .then((folder) => console.log(JSON.stringify({ folder })), ({ code, message }) => console.log(JSON.stringify({ code, message })));`;
  const [file, args] = wrap(process.execPath, ["-e", body]);
  const child = spawn(file, args, { cwd: ROOT, env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (data) => {
    stdout += data;
  });
  child.stderr.on("data", (data) => {
    stderr += data;
  });
  child.result = once(child, "close").then(([status, signal]) => {
    if (signal) return { signal };
    assert.equal(status, 0, `${stdout}\n${stderr}`);
    assert.equal(stderr, "");
    return JSON.parse(stdout);
  });
  return child;
}

async function until(condition, what) {
  for (let waited = 0; !condition(); waited += 20) {
    assert.ok(waited < 15_000, `waited in vain for ${what}`);
    await delay(20);
  }
}

describe("the cache", () => {
  test("has the layout of Python's huggingface_hub, and only the files that loading reads", async () => {
    const { hub, options } = await hubWith();
    const folder = await pull(ID, options);
    assert.equal(folder, path.join(options.cacheFolder, "models--org--model/snapshots", COMMIT));
    assertComplete(folder);
    assert.deepEqual(
      tree(options.cacheFolder),
      [
        ...NEEDED.map((name) => `models--org--model/blobs/${etagOf(FIXTURE[name])}`),
        "models--org--model/refs/main",
        ...NEEDED.map((name) => `models--org--model/snapshots/${COMMIT}/${name}`),
        `models--org--model/trees/${COMMIT}.json`,
      ].sort(),
    );
    assert.equal(readFileSync(path.join(repository(options), "refs/main"), "utf8"), COMMIT);
    assert.equal(readlinkSync(path.join(folder, "config.json")), `../../blobs/${gitHash(FIXTURE["config.json"])}`);
    assert.equal(
      readlinkSync(path.join(folder, "1_Pooling/config.json")),
      `../../../blobs/${gitHash(FIXTURE["1_Pooling/config.json"])}`,
    );
    assert.equal(readlinkSync(path.join(folder, "model.safetensors")), `../../blobs/${sha256(WEIGHTS)}`);
    const { format_version, files } = JSON.parse(
      readFileSync(path.join(repository(options), `trees/${COMMIT}.json`), "utf8"),
    );
    assert.equal(format_version, 1);
    assert.deepEqual(files["config.json"], {
      size: FIXTURE["config.json"].length,
      blob_id: gitHash(FIXTURE["config.json"]),
    });
    const { lfs_sha256, lfs_size, size } = files["model.safetensors"];
    assert.deepEqual([lfs_sha256, lfs_size, size], [sha256(WEIGHTS), WEIGHTS.length, WEIGHTS.length]);
    assert.deepEqual(hub.fileRequests().length, NEEDED.length + 1, "one request a file, and one at the other host");
  });

  test("holds plain files where links cannot be made", async (t) => {
    process.env.HF_HUB_DISABLE_SYMLINKS = "1";
    t.after(() => delete process.env.HF_HUB_DISABLE_SYMLINKS);
    const { options } = await hubWith();
    const folder = await pull(ID, options);
    assertComplete(folder);
    for (const name of NEEDED) assert.ok(lstatSync(path.join(folder, name)).isFile(), name);
  });

  test("that Python left, without a list of files, serves offline", async () => {
    const { options } = await hubWith();
    const folder = path.join(repository(options), "snapshots", COMMIT);
    mkdirSync(path.join(repository(options), "blobs"), { recursive: true });
    mkdirSync(path.join(repository(options), "refs"));
    writeFileSync(path.join(repository(options), "refs/main"), COMMIT);
    for (const name of NEEDED) {
      const blob = path.join(repository(options), "blobs", etagOf(FIXTURE[name]));
      writeFileSync(blob, FIXTURE[name]);
      mkdirSync(path.dirname(path.join(folder, name)), { recursive: true });
      symlinkSync(path.relative(path.dirname(path.join(folder, name)), blob), path.join(folder, name));
    }
    assert.equal(await pull(ID, { ...options, offline: true }), folder);
    rmSync(path.join(folder, "model.safetensors"));
    await assert.rejects(
      pull(ID, { ...options, offline: true }),
      embedderError("MODEL_NOT_FOUND", "org/model@main is in the cache", "no model.safetensors", "offline mode"),
    );
  });

  test("is where the environment says, and the token too", async (t) => {
    const { hub, options } = await hubWith();
    const home = temporaryFolder();
    const folders = {
      HF_HUB_CACHE: path.join(home, "a"),
      HF_HOME: path.join(home, "b"),
      XDG_CACHE_HOME: path.join(home, "c"),
    };
    const expected = [path.join(home, "a"), path.join(home, "b/hub"), path.join(home, "c/huggingface/hub")];
    const saved = { ...process.env };
    t.after(() => Object.assign(process.env, { HF_HOME: saved.HF_HOME }));
    Object.assign(process.env, folders);
    mkdirSync(folders.HF_HOME);
    writeFileSync(path.join(folders.HF_HOME, "token"), "hf_from_file\n");
    const { endpoint } = options;
    for (const [index, name] of Object.keys(folders).entries()) {
      assert.ok((await pull(ID, { endpoint })).startsWith(expected[index] + path.sep), name);
      delete process.env[name];
    }
    const tokens = new Set(hub.requests.filter(({ host }) => host === "hub").map(({ authorization }) => authorization));
    assert.deepEqual([...tokens], ["Bearer hf_from_file", undefined]);
  });

  test("keeps the state of a branch until the new one is whole; what both have is downloaded once", async () => {
    const { hub, options } = await hubWith();
    const old = await pull(ID, options);
    const weights = Buffer.from(WEIGHTS);
    weights[weights.length - 1] ^= 1;
    const commit = "2".repeat(40);
    hub.models[ID] = { files: { ...FIXTURE, "model.safetensors": weights }, commit };
    hub.fault("cdn", /safetensors/, (response) => refuse(response, 403));
    await assert.rejects(pull(ID, options), embedderError("ACCESS_DENIED"));
    assert.equal(await pull(ID, { ...options, offline: true }), old);
    hub.requests.length = 0;
    const folder = await pull(ID, options);
    assert.equal(path.basename(folder), commit);
    assert.deepEqual(hub.fileRequests(), ["hub model.safetensors", "cdn model.safetensors"]);
    assertComplete(folder, hub.models[ID].files);
    assert.equal(await pull(`${ID}@${COMMIT}`, { ...options, offline: true }), old);
  });

  test("a damaged blob is fetched again", async () => {
    const { options } = await hubWith();
    const folder = await pull(`${ID}@${COMMIT}`, options);
    truncateSync(path.join(folder, "model.safetensors"), 1000);
    await assert.rejects(
      pull(`${ID}@${COMMIT}`, { ...options, offline: true }),
      embedderError("MODEL_NOT_FOUND", "without model.safetensors"),
    );
    assertComplete(await pull(`${ID}@${COMMIT}`, options));
  });

  test("that cannot be written is said to be so", {
    skip: process.getuid?.() === 0 && "root may write anywhere",
  }, async () => {
    const { options } = await hubWith();
    const folder = temporaryFolder();
    chmodSync(folder, 0o500);
    await assert.rejects(
      pull(ID, { ...options, cacheFolder: path.join(folder, "hub") }),
      embedderError("DOWNLOAD_FAILED", "cannot write into the cache", "HF_HOME"),
    );
  });

  test("that has everything need not be written", async () => {
    const { hub, options } = await hubWith();
    const folder = await pull(ID, options);
    const trees = path.join(repository(options), "trees");
    rmSync(trees, { recursive: true });
    writeFileSync(trees, "in the way");
    assert.equal(await pull(ID, options), folder);
    rmSync(path.join(folder, "tokenizer.json"));
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "cannot write into the cache"));
    assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 1);
  });

  test("that is a file is said to be so", async () => {
    const { options } = await hubWith();
    const file = path.join(temporaryFolder(), "file");
    writeFileSync(file, "");
    await assert.rejects(
      pull(ID, { ...options, cacheFolder: file }),
      embedderError("DOWNLOAD_FAILED", "cannot write into the cache", "HF_HOME"),
    );
  });
});

describe("which files", () => {
  test("shards, with their index", async () => {
    const files = filesIn(path.join(ROOT, "tests/fixtures/bert_cls_f16"));
    const { options } = await hubWith({ ...files, "model.safetensors": null });
    const folder = await pull(ID, options);
    const weights = tree(folder).filter((name) => name.startsWith("model"));
    assert.deepEqual(
      weights,
      Object.keys(files)
        .filter((name) => name.startsWith("model-") || name.includes("index"))
        .sort(),
    );
  });

  test("a model in a folder below", async () => {
    const files = filesIn(path.join(ROOT, "tests/fixtures/bert_cls_bf16"));
    const nothing = Object.fromEntries(Object.keys(FIXTURE).map((name) => [name, null]));
    const { options } = await hubWith({ ...nothing, ...files });
    const folder = await pull(ID, options);
    assert.deepEqual(tree(folder), Object.keys(files).sort());
  });

  test("the ONNX graph and its data when asked for, and no other", async () => {
    const { options } = await hubWith();
    const folder = await pull(ID, { ...options, onnx: true });
    assert.deepEqual(tree(folder), [...NEEDED, "onnx/model.onnx", "onnx/model.onnx_data"].sort());
  });

  test("a repository without weights that can be read", async () => {
    const { hub, options } = await hubWith({ "model.safetensors": null, "onnx/model.onnx": null });
    await assert.rejects(
      pull(ID, options),
      embedderError("MODEL_UNSUPPORTED", "org/model@main has no model.safetensors", "pytorch_model.bin"),
    );
    hub.models[ID].files["model.safetensors"] = WEIGHTS;
    await assert.rejects(
      pull(ID, { ...options, onnx: true }),
      embedderError("MODEL_UNSUPPORTED", "has no ONNX file", "onnx/model.onnx", "exportOnnx"),
    );
  });

  test("another architecture is refused before its weights are downloaded", async () => {
    const config = Buffer.from(JSON.stringify({ ...JSON.parse(FIXTURE["config.json"]), model_type: "mpnet" }));
    const { hub, options } = await hubWith({ "config.json": config });
    await assert.rejects(pull(ID, options), embedderError("MODEL_UNSUPPORTED", '"mpnet"'));
    assert.deepEqual(hub.fileRequests(), ["hub modules.json", "hub config.json"]);
  });

  test("names that lead out of the folder are never written", async () => {
    const evil = { "../evil": Buffer.from("x"), "/evil": Buffer.from("x"), "a\\..\\..\\evil": Buffer.from("x") };
    const { options } = await hubWith(evil);
    assertComplete(await pull(ID, options));
    assert.deepEqual(
      tree(path.dirname(options.cacheFolder)).filter((name) => name.includes("evil")),
      [],
    );

    const index = (name) => Buffer.from(JSON.stringify({ weight_map: { a: name } }));
    for (const name of ["../config.json", "/etc/passwd", "..\\config.json", "1_Pooling/../../x"]) {
      const { options } = await hubWith({
        [name]: Buffer.from("x"),
        "model.safetensors": null,
        "model.safetensors.index.json": index(name),
      });
      await assert.rejects(pull(ID, options), embedderError("MODEL_INVALID", "weight_map", JSON.stringify(name)));
    }
    const modules = JSON.parse(FIXTURE["modules.json"]);
    modules[0].path = "../..";
    const { options: nested } = await hubWith({ "modules.json": Buffer.from(JSON.stringify(modules)) });
    await assert.rejects(pull(ID, nested), embedderError("MODEL_INVALID", "inside the model folder"));
  });

  test("a hash or commit that could be a path is refused", async () => {
    for (const change of [
      { blobId: "../../../evil" },
      { blobId: undefined },
      { lfs: { sha256: "..", size: 1 } },
      { size: -1 },
    ]) {
      const { hub, options } = await hubWith();
      const siblings = [{ rfilename: "config.json", size: 3, blobId: "0".repeat(40), ...change }];
      hub.fault("hub", /api/, (response) => sendJson(response, { sha: COMMIT, siblings }));
      await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "config.json has no size or hash"));
    }
    for (const answer of [{ sha: "../..", siblings: [] }, { sha: COMMIT }, [], null]) {
      const { hub, options } = await hubWith();
      hub.fault("hub", /api/, (response) => sendJson(response, answer));
      await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "expected a Hub's description"));
    }
    const { hub, options } = await hubWith();
    hub.fault("hub", /api/, (response) => response.end("<html>Please log in</html>"));
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "expected a short JSON", "login page"));
  });
});

describe("the transfer", () => {
  test("goes on after a cut, and hashes the whole", async () => {
    const { hub, options } = await hubWith();
    hub.fault("cdn", /safetensors/, cutAfter(60_000));
    hub.fault("cdn", /safetensors/, cutAfter(100_000));
    assertComplete(await pull(ID, options));
    const ranges = hub.requests.filter(({ host }) => host === "cdn").map(({ range }) => range);
    assert.deepEqual(ranges, [undefined, "bytes=60000-", "bytes=100000-"]);
    assert.deepEqual(parts(options), []);
  });

  test("starts over where a server ignores the range", async () => {
    const { hub, options } = await hubWith();
    hub.fault("cdn", /safetensors/, cutAfter(60_000));
    hub.fault("cdn", /safetensors/, (response, { file }) => response.end(file));
    assertComplete(await pull(ID, options));
  });

  test("gives up on a server that starts over and breaks off each time", async () => {
    const { hub, options } = await hubWith();
    const breakOff = (response, { file }) => {
      response.writeHead(200, { "content-length": file.length });
      response.write(file.subarray(0, 60_000), () => setTimeout(() => response.destroy(), 20));
    };
    hub.fault("cdn", /safetensors/, breakOff, 99);
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "connection to http://localhost"));
    assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 5, "one, and four that brought nothing new");
  });

  test("gives up after attempts without a byte, keeps what it has, and goes on from there", async () => {
    const { hub, options } = await hubWith();
    hub.fault("cdn", /safetensors/, cutAfter(60_000));
    hub.fault("cdn", /safetensors/, (response) => refuse(response, 503, "", "", { "retry-after": "0" }), 4);
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "answered 503", "model.safetensors"));
    assert.deepEqual(parts(options), [`${sha256(WEIGHTS)}.semantic-search.incomplete`]);
    hub.requests.length = 0;
    assertComplete(await pull(ID, options));
    assert.deepEqual(hub.fileRequests(), ["hub model.safetensors bytes=60000-", "cdn model.safetensors bytes=60000-"]);
  });

  test("a wrong beginning of an earlier download is thrown away", async () => {
    const { hub, options } = await hubWith();
    const part = path.join(repository(options), "blobs", `${sha256(WEIGHTS)}.semantic-search.incomplete`);
    for (const rubbish of [
      Buffer.alloc(1000, 7),
      Buffer.alloc(WEIGHTS.length, 7),
      Buffer.alloc(WEIGHTS.length + 1, 7),
    ]) {
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

    test(`wrong bytes once are fetched again: ${file}`, async () => {
      const { hub, options } = await hubWith();
      hub.fault(host, pattern, wrong);
      assertComplete(await pull(ID, options));
    });

    test(`wrong bytes are an error and leave nothing: ${file}`, async () => {
      const { hub, options } = await hubWith();
      hub.fault(host, pattern, wrong, 99);
      await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", file, etagOf(FIXTURE[file])));
      assert.ok(!blobs(options).some((name) => name.startsWith(etagOf(FIXTURE[file]))));
      assert.ok(!existsSync(path.join(repository(options), "snapshots", COMMIT, file)));
    });
  }

  test("more bytes than the file has are an error, however many", async () => {
    const { hub, options } = await hubWith();
    const endless = (response) => {
      const timer = setInterval(() => response.write(Buffer.alloc(100_000)), 5);
      response.on("close", () => clearInterval(timer));
    };
    hub.fault("cdn", /safetensors/, endless, 99);
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "found more bytes"));
  });

  test("a stalled connection is given up", async (t) => {
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = "1";
    t.after(() => delete process.env.HF_HUB_DOWNLOAD_TIMEOUT);
    const { hub, options } = await hubWith();
    hub.fault("cdn", /safetensors/, stallAfter(60_000));
    hub.fault("hub", /api/, () => {});
    assertComplete(await pull(ID, options));
    assert.equal(hub.requests.at(-1).range, "bytes=60000-");
  });

  test("429 and 503 are waited out as long as they ask", async () => {
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

  test("who asks for an hour is not waited for", async () => {
    const { hub, options } = await hubWith();
    hub.fault("hub", /api/, (response) => refuse(response, 429, "", "", { "retry-after": "3600" }));
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "429", "retry in 3600 s", "HF_TOKEN"));
    assert.equal(hub.requests.length, 1);
  });

  test("progress is told in bytes of the whole model", async () => {
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

  test("an error that onProgress throws ends the call", async () => {
    const { options } = await hubWith();
    const error = new Error("no more");
    const onProgress = () => {
      throw error;
    };
    await assert.rejects(pull(ID, { ...options, onProgress }), (thrown) => thrown === error);
    assertComplete(await pull(ID, options));
  });
});

describe("what the server refuses", () => {
  const cases = [
    [
      "an unknown model",
      (response) => refuse(response, 401, "RepoNotFound"),
      "MODEL_NOT_FOUND",
      ["no model org/model", "private", "HF_TOKEN", "./org/model"],
    ],
    [
      "an unknown model, to a token",
      (response) => refuse(response, 404, "RepoNotFound"),
      "MODEL_NOT_FOUND",
      ["the token that was sent"],
      "hf_x",
    ],
    [
      "an unknown revision",
      (response) => refuse(response, 404, "RevisionNotFound"),
      "MODEL_NOT_FOUND",
      ['no branch, tag or commit "main"'],
    ],
    [
      "a wrong token",
      (response) => refuse(response, 401, "", "Invalid credentials in Authorization header"),
      "ACCESS_DENIED",
      ["401", "Invalid credentials", "the token that was sent"],
      "hf_x",
    ],
    ["no rights", (response) => refuse(response, 403), "ACCESS_DENIED", ["403", "HF_TOKEN"]],
    [
      "a gated model",
      (response) => refuse(response, 403, "GatedRepo", "Access to model org/model is restricted"),
      "ACCESS_DENIED",
      ["gated", "accept its conditions", "/org/model", "HF_TOKEN"],
    ],
    ["a strange answer", (response) => refuse(response, 418), "DOWNLOAD_FAILED", ["418"]],
  ];
  for (const [what, reply, code, parts, token = false] of cases) {
    test(what, async () => {
      const { hub, options } = await hubWith();
      hub.fault("hub", /api/, reply);
      await assert.rejects(pull(ID, { ...options, token }), embedderError(code, ...parts));
      assert.equal(hub.requests.length, 1, "asked once");
    });
  }

  test("a file of the list that is gone", async () => {
    const { hub, options } = await hubWith();
    hub.fault("hub", /resolve.*safetensors/, (response) => refuse(response, 404, "EntryNotFound"));
    await assert.rejects(
      pull(ID, options),
      embedderError("MODEL_NOT_FOUND", "has no model.safetensors of org/model@main"),
    );
  });

  test("a gated file of a model that may be listed", async () => {
    const { hub, options } = await hubWith();
    hub.fault("hub", /resolve/, (response) =>
      refuse(response, 401, "GatedRepo", "Access to model org/model is restricted"),
    );
    await assert.rejects(pull(ID, options), embedderError("ACCESS_DENIED", "gated model", "no token was sent"));
  });

  test("the real thing: no such model, no such revision", async () => {
    const { options } = await hubWith();
    await assert.rejects(pull("org/other", options), embedderError("MODEL_NOT_FOUND", "no model org/other"));
    await assert.rejects(pull(`${ID}@v9`, options), embedderError("MODEL_NOT_FOUND", '"v9"'));
    await assert.rejects(pull(`${ID}@${"3".repeat(40)}`, options), embedderError("MODEL_NOT_FOUND", "3".repeat(40)));
  });
});

describe("the token", () => {
  test("goes to the endpoint and to no other host, however it redirects", async () => {
    const { hub, options } = await hubWith();
    await pull(ID, { ...options, token: "hf_secret" });
    for (const { host, authorization } of hub.requests) {
      assert.equal(authorization, host === "hub" ? "Bearer hf_secret" : undefined);
    }
    assert.ok(hub.requests.some(({ host }) => host === "cdn"));
  });

  test("stays on the endpoint's own redirects, as for a renamed model", async () => {
    const { hub, options } = await hubWith();
    hub.fault("hub", /api\/models\/org\/old/, (response) => {
      response.writeHead(307, { location: `/api/models/${ID}/revision/main?blobs=true` });
      response.end();
    });
    hub.models["org/old"] = hub.models[ID];
    await pull("org/old", { ...options, token: "hf_secret" });
    const [first, second] = hub.requests;
    assert.deepEqual([first.authorization, second.authorization], ["Bearer hf_secret", "Bearer hf_secret"]);
  });

  test("redirects end", async () => {
    const { hub, options } = await hubWith();
    const loop = (response) => {
      response.writeHead(302, { location: "/api/again" });
      response.end();
    };
    hub.fault("hub", /api/, loop, 99);
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "redirects endlessly"));
  });

  test("never shows in an error", async () => {
    const { options } = await hubWith();
    await assert.rejects(pull(ID, { ...options, token: "hf secret" }), (error) => {
      assert.ok(!error.message.includes("secret"));
      return embedderError("INVALID_ARGUMENT", "token")(error);
    });
  });
});

describe("the network", () => {
  test("is not needed for a pinned commit that is there", async () => {
    const { hub, options } = await hubWith();
    const folder = await pull(`${ID}@${COMMIT}`, options);
    hub.requests.length = 0;
    assert.equal(await pull(ID, { ...options, revision: COMMIT }), folder);
    assert.deepEqual(hub.requests, []);
    hub.close();
    assert.equal(await pull(`${ID}@${COMMIT}`, options), folder);
  });

  test("may be down for a branch that is there; whatever is not there is an error", async () => {
    const { hub, options } = await hubWith();
    const folder = await pull(ID, options);
    hub.fault("hub", /api/, (response) => refuse(response, 500));
    assert.equal(await pull(ID, options), folder, "the server is in trouble");
    hub.close();
    assert.equal(await pull(ID, options), folder, "nobody is there");
    await assert.rejects(
      pull(`${ID}@other`, options),
      embedderError("DOWNLOAD_FAILED", "connection to http://127.0.0.1", "HTTPS_PROXY", "HF_ENDPOINT"),
    );
  });

  test("is left alone in offline mode, which says what is missing", async (t) => {
    const { hub, options } = await hubWith();
    await assert.rejects(
      pull(ID, { ...options, offline: true }),
      embedderError("MODEL_NOT_FOUND", "org/model@main is not in the cache", options.cacheFolder, "HF_HUB_OFFLINE"),
    );
    assert.deepEqual(hub.requests, []);
    const folder = await pull(ID, options);
    hub.requests.length = 0;
    process.env.HF_HUB_OFFLINE = "1";
    t.after(() => delete process.env.HF_HUB_OFFLINE);
    assert.equal(await pull(ID, options), folder);
    assert.equal(await pull(`${ID}@${COMMIT}`, options), folder);
    await assert.rejects(
      pull(`${ID}@v2`, options),
      embedderError("MODEL_NOT_FOUND", "org/model@v2 is not in the cache", "it holds org/model@main"),
    );
    rmSync(path.join(folder, "tokenizer.json"));
    await assert.rejects(
      pull(ID, options),
      embedderError("MODEL_NOT_FOUND", "is in the cache without tokenizer.json", "offline mode"),
    );
    assert.deepEqual(hub.requests, []);
    assertComplete(await pull(ID, { ...options, offline: false }));
  });

  test("may lead to a mirror with a path of its own", async (t) => {
    const { hub, options } = await hubWith({}, { prefix: "/mirror/hf" });
    process.env.HF_ENDPOINT = `${hub.endpoint}/`;
    t.after(() => delete process.env.HF_ENDPOINT);
    assertComplete(await pull(ID, { ...options, endpoint: undefined }));
    assert.ok(hub.requests.every(({ path: asked }) => asked.startsWith("/mirror/hf/")));
  });
});

describe("a proxy", () => {
  test("is used for http", async () => {
    const { hub, options } = await hubWith();
    const proxy = await startProxy();
    servers.push(proxy);
    const { folder } = await pulling(options, { HTTP_PROXY: proxy.url }).result;
    assertComplete(folder);
    assert.equal(proxy.asked.length, hub.requests.length);
    assert.equal(proxy.asked[0], `GET ${hub.endpoint}/api/models/${ID}/revision/main`);
  });

  const key = path.join(temporaryFolder(), "key.pem");
  const cert = path.join(path.dirname(key), "cert.pem");
  const hosts = "subjectAltName=IP:127.0.0.1,DNS:localhost";
  const made = spawnSync("openssl", [
    ...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"],
    ...["-subj", "/CN=localhost", "-addext", hosts, "-keyout", key, "-out", cert],
  ]);

  test("is tunneled through for https, and left alone where NO_PROXY says so", {
    skip: made.status !== 0 && "there is no openssl to make a certificate",
  }, async () => {
    const tls = { key: readFileSync(key, "utf8"), cert: readFileSync(cert, "utf8") };
    const { options } = await hubWith({}, { tls });
    const proxy = await startProxy();
    servers.push(proxy);
    const env = { NODE_EXTRA_CA_CERTS: cert, HTTPS_PROXY: proxy.url };
    assertComplete((await pulling(options, env).result).folder);
    assert.deepEqual([...new Set(proxy.asked.map((line) => line.replace(/\d+$/, "")))].sort(), [
      "CONNECT 127.0.0.1:",
      "CONNECT localhost:",
    ]);
    proxy.asked.length = 0;
    const elsewhere = { ...options, cacheFolder: temporaryFolder() };
    assertComplete((await pulling(elsewhere, { ...env, NO_PROXY: "example.org,127.0.0.1, localhost" }).result).folder);
    assert.deepEqual(proxy.asked, []);
    const { code, message } = await pulling({ ...options, cacheFolder: temporaryFolder() }).result;
    assert.equal(code, "DOWNLOAD_FAILED");
    assert.match(message, /self-signed certificate.*NODE_EXTRA_CA_CERTS/);
  });

  test("that wants a name and password gets them, and says so without", async () => {
    const proxy = await startProxy({ login: "me:pass word" });
    servers.push(proxy);
    const url = (login) => proxy.url.replace("//", `//${login}`);
    const { options } = await hubWith();
    assertComplete((await pulling(options, { HTTP_PROXY: url("me:pass%20word@") }).result).folder);
    for (const [scheme, login] of [
      ["HTTP_PROXY", ""],
      ["HTTP_PROXY", "me:wrong@"],
      ["HTTPS_PROXY", ""],
      ["HTTPS_PROXY", "me:wrong@"],
    ]) {
      const endpoint = scheme === "HTTPS_PROXY" ? options.endpoint.replace("http:", "https:") : options.endpoint;
      const elsewhere = { ...options, endpoint, cacheFolder: temporaryFolder() };
      const { code, message } = await pulling(elsewhere, { [scheme]: url(login) }).result;
      assert.equal(code, "ACCESS_DENIED", message);
      assert.match(message, /proxy requires a name and password/);
    }
  });

  test("is chosen as curl and Python choose it", () => {
    const choose = (url, env) => proxyFor(new URL(url), env);
    assert.equal(choose("https://a.b/", {}), undefined);
    assert.equal(choose("https://a.b/", { HTTPS_PROXY: "http://p:1" }), "http://p:1");
    assert.equal(choose("https://a.b/", { https_proxy: "p:1" }), "http://p:1");
    assert.equal(choose("https://a.b/", { HTTP_PROXY: "http://p:1" }), undefined);
    assert.equal(choose("http://a.b/", { HTTP_PROXY: "http://p:1" }), "http://p:1");
    assert.equal(choose("http://a.b/", { ALL_PROXY: "http://p:1" }), "http://p:1");
    for (const [list, excepted] of Object.entries({
      "*": true,
      "a.b": true,
      ".a.b": true,
      "*.b": true,
      "x,  a.b": true,
      "a.b:443": true,
      "a.b:80": false,
      b: true,
      "xa.b": false,
      "": false,
      ",": false,
    })) {
      const chosen = choose("https://a.b/", { HTTPS_PROXY: "http://p:1", NO_PROXY: list });
      assert.equal(chosen === undefined, excepted, JSON.stringify(list));
    }
    assert.equal(choose("https://[::1]/", { HTTPS_PROXY: "http://p:1", no_proxy: "[::1]" }), undefined);
    assert.throws(
      () => choose("https://a.b/", { HTTPS_PROXY: "socks5://user:secret@p:1" }),
      (error) => !error.message.includes("secret") && embedderError("INVALID_ARGUMENT", "HTTPS_PROXY")(error),
    );
  });
});

describe("several processes", () => {
  test("at once: one downloads, the others wait for it", async () => {
    const { hub, options } = await hubWith();
    let release;
    const released = new Promise((resolve) => {
      release = resolve;
    });
    hub.fault(
      "cdn",
      /safetensors/,
      sendUntil(100_000, (response, file) => released.then(() => response.end(file.subarray(100_000)))),
    );
    const children = [1, 2, 3].map(() => pulling(options));
    await until(() => parts(options).length > 0, "the first bytes");
    await until(() => hub.requests.filter(({ path: asked }) => asked.includes("/api/")).length === 3, "all processes");
    // The others are at the weights, too, by now, or will find them.
    await delay(500);
    release();
    for (const { folder } of await Promise.all(children.map(({ result }) => result))) assertComplete(folder);
    assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 1, "one download of the weights");
    assert.deepEqual(parts(options), []);
  });

  test("calls in one process, too", async () => {
    const { hub, options } = await hubWith();
    const folders = await Promise.all([1, 2, 3, 4].map(() => pull(ID, options)));
    assert.equal(new Set(folders).size, 1);
    assertComplete(folders[0]);
    assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 1);
  });

  test("killed in the middle: the next one goes on from there", async () => {
    const { hub, options } = await hubWith();
    hub.fault("cdn", /safetensors/, stallAfter(150_000));
    const child = pulling(options);
    const part = () => parts(options).map((name) => path.join(repository(options), "blobs", name))[0];
    await until(() => part() && statSync(part()).size === 150_000, "the bytes");
    child.kill("SIGKILL");
    assert.deepEqual(await child.result, { signal: "SIGKILL" });
    assert.ok(!existsSync(path.join(repository(options), "refs/main")), "nothing says that the model is there");
    hub.requests.length = 0;
    assertComplete(await pull(ID, options));
    assert.deepEqual(
      hub.requests.filter(({ host }) => host === "cdn").map(({ range }) => range),
      ["bytes=150000-"],
    );
    assert.deepEqual(parts(options), []);
  });

  test("killed while another waits: that one takes over", async () => {
    const { hub, options } = await hubWith();
    hub.fault("cdn", /safetensors/, stallAfter(150_000));
    const child = pulling(options);
    await until(
      () =>
        existsSync(path.join(repository(options), "blobs")) &&
        parts(options).some((name) => name.startsWith(sha256(WEIGHTS))),
      "the bytes",
    );
    const waiting = pull(ID, options);
    await delay(1500);
    assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 1, "it waits");
    child.kill("SIGKILL");
    assertComplete(await waiting);
    assert.equal(hub.requests.at(-1).range, "bytes=150000-");
  });
});

describe("a part", () => {
  test("that another took over meanwhile is left to that one", async () => {
    const { hub, options } = await hubWith();
    let release;
    const released = new Promise((resolve) => {
      release = resolve;
    });
    const rest = (response, file) => released.then(() => response.end(file.subarray(100_000)));
    hub.fault("cdn", /safetensors/, sendUntil(100_000, rest));
    const pulled = pull(ID, options);
    const part = () => parts(options).find((name) => name.startsWith(sha256(WEIGHTS)));
    await until(part, "the first bytes");
    // As a process of another machine does that took this one for dead.
    const folder = path.join(repository(options), "blobs");
    const theirs = path.join(folder, `${sha256(WEIGHTS)}.semantic-search.00000000-1-0000.incomplete`);
    renameSync(path.join(folder, part()), theirs);
    release();
    await delay(700);
    writeFileSync(path.join(folder, sha256(WEIGHTS)), WEIGHTS);
    rmSync(theirs);
    assertComplete(await pulled);
    assert.deepEqual(parts(options), []);
  });

  test("that a process of another machine left is taken after a while", async () => {
    const { hub, options } = await hubWith();
    const folder = path.join(repository(options), "blobs");
    mkdirSync(folder, { recursive: true });
    const theirs = path.join(folder, `${sha256(WEIGHTS)}.semantic-search.00000000-1-0000.incomplete`);
    writeFileSync(theirs, WEIGHTS.subarray(0, 70_000));
    await assert.rejects(pull(ID, { ...options, signal: AbortSignal.timeout(700) }), { code: "ABORT_ERR" });
    const longAgo = Date.now() / 1000 - 60;
    utimesSync(theirs, longAgo, longAgo);
    assertComplete(await pull(ID, options));
    assert.equal(hub.requests.at(-1).range, "bytes=70000-");
  });
});

describe("the disk", () => {
  test("is asked for its free space before anything large comes", async () => {
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

  test("that is full leaves nothing half-written", {
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
});

describe("giving up", () => {
  const aborted = (error) => error.name === "AbortError" && error.code === "ABORT_ERR" && error.cause === "enough";

  const stages = {
    "before anything": (_hub, abort) => abort(),
    "while the model is looked up": (hub, abort) => hub.fault("hub", /api/, abort),
    "while a server is waited for": (hub, abort) =>
      hub.fault("hub", /api/, (response) => {
        refuse(response, 503, "", "", { "retry-after": "30" });
        setTimeout(abort, 100);
      }),
    "while the weights come": (hub, abort) => hub.fault("cdn", /safetensors/, sendUntil(100_000, abort)),
  };
  for (const [stage, arrange] of Object.entries(stages)) {
    test(stage, async () => {
      const { hub, options } = await hubWith();
      const controller = new AbortController();
      arrange(hub, () => controller.abort("enough"));
      const started = Date.now();
      await assert.rejects(pull(ID, { ...options, signal: controller.signal }), aborted);
      assert.ok(Date.now() - started < 5000);
      assertComplete(await pull(ID, options));
    });
  }

  test("while another process is waited for", async () => {
    const { hub, options } = await hubWith();
    hub.fault("cdn", /safetensors/, stallAfter(100_000));
    const first = new AbortController();
    const downloading = pull(ID, { ...options, signal: first.signal });
    await until(() => hub.requests.some(({ host }) => host === "cdn"), "the download");
    await assert.rejects(pull(ID, { ...options, signal: AbortSignal.timeout(500) }), { code: "ABORT_ERR" });
    first.abort("enough");
    await assert.rejects(downloading, aborted);
  });
});

describe("arguments", () => {
  test("names and revisions", async () => {
    for (const name of [
      undefined,
      1,
      "",
      "model",
      "a/b/c",
      "../model",
      "org/..",
      "org/model@",
      "-a/b",
      "a/b.git",
      "a--b/c",
      "org/mo del",
    ]) {
      await assert.rejects(pull(name), embedderError("INVALID_ARGUMENT", "a name on the Hub"), String(name));
    }
    for (const revision of ["../main", "a/../../b", "/a", "a b", "a\\b", "a\u0000"]) {
      await assert.rejects(pull(ID, { revision }), embedderError("INVALID_ARGUMENT", "revision"), revision);
    }
    const { hub, options } = await hubWith({}, { branches: { main: COMMIT, "refs/pr/1": COMMIT } });
    assert.equal(path.basename(await pull(`${ID}@refs/pr/1`, options)), COMMIT);
    assert.equal(readFileSync(path.join(repository(options), "refs/refs/pr/1"), "utf8"), COMMIT);
    assert.ok(hub.requests[0].path.includes("/revision/refs%2Fpr%2F1?"));
  });

  test("options", async () => {
    await assert.rejects(pull(ID, { cachefolder: "x" }), embedderError("INVALID_ARGUMENT", '"cacheFolder"'));
    await assert.rejects(pull(ID, { endpoint: "hub" }), embedderError("INVALID_ARGUMENT", "http or https URL"));
    await assert.rejects(pull(ID, { endpoint: "ftp://x" }), embedderError("INVALID_ARGUMENT", "http or https URL"));
    await assert.rejects(pull(ID, { token: 1 }), embedderError("INVALID_ARGUMENT", "token"));
    await assert.rejects(pull(ID, { signal: {} }), embedderError("INVALID_ARGUMENT", "AbortSignal"));
  });
});

describe("Embedder.load by name", () => {
  const TEXTS = ["the time", "where is it?"];

  /** Loads in this process with the environment leading to `hub`. */
  async function byName(t, { hub, options }, name, loadOptions, use) {
    Object.assign(process.env, { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: options.cacheFolder });
    t.after(() => {
      delete process.env.HF_ENDPOINT;
      delete process.env.HF_HUB_CACHE;
    });
    return withEmbedder(name, loadOptions, use);
  }
  const identity = async (embedder) => ({
    fingerprint: embedder.fingerprint,
    documents: await embedder.embed(TEXTS),
    query: await embedder.embedQuery(TEXTS[1]),
  });

  test("gives the vectors of the folder, tells progress, and needs no network again", async (t) => {
    const server = await hubWith();
    const reports = [];
    const onProgress = (progress) => reports.push(progress);
    const named = await byName(t, server, ID, { backend: "onnx", onProgress }, identity);
    assert.deepEqual(named, await withEmbedder(await model("bert_mean"), { backend: "onnx" }, identity));
    assert.equal(reports.at(-1).done, reports.at(-1).total);
    server.hub.close();
    assert.deepEqual(await byName(t, server, `${ID}@${COMMIT}`, { backend: "onnx", offline: true }, identity), named);
  });

  test("the fallback gets the ONNX graph, and not the safetensors beside it", async (t) => {
    const folder = await model("bert_mean");
    // The exported graph with its weights under the name that exports on the Hub give them, which is as long.
    const graph = readFileSync(path.join(folder, "semantic-search-native.onnx")).toString("latin1");
    const renamed = Buffer.from(graph.replaceAll("model.safetensors", "model.onnx_data_1"), "latin1");
    const server = await hubWith({
      "onnx/model.onnx": renamed,
      "onnx/model.onnx_data": null,
      "onnx/model.onnx_data_1": WEIGHTS,
    });
    const named = await byName(t, server, ID, { backend: "onnx-js" }, identity);
    const { documents, query } = await withEmbedder(folder, { backend: "onnx-js" }, identity);
    assert.deepEqual([named.documents, named.query], [documents, query]);
    assert.ok(!tree(server.options.cacheFolder).some((name) => name.endsWith("model.safetensors")));

    await byName(t, server, ID, { backend: "onnx" }, async ({ backend }) => assert.equal(backend, "onnx"));
    await byName(t, server, ID, { backend: "onnx-js", offline: true }, async ({ backend }) =>
      assert.equal(backend, "onnx-js"),
    );
  });

  test("a graph that exportOnnx left in the snapshot serves the fallback", async (t) => {
    const server = await hubWith({ "onnx/model.onnx": null, "onnx/model.onnx_data": null });
    await assert.rejects(
      byName(t, server, ID, { backend: "onnx-js" }, identity),
      embedderError("MODEL_UNSUPPORTED", "has no ONNX file"),
    );
    const named = await byName(t, server, ID, { backend: "onnx" }, identity);
    await api.exportOnnx(ID);
    const fallback = await byName(t, server, ID, { backend: "onnx-js" }, identity);
    assert.equal(fallback.fingerprint, named.fingerprint);
  });

  test("a known model comes at its pinned commit, with its authors' prompts where the folder has none", async (t) => {
    const { id, revision, queryPrompt } = KNOWN_MODELS.find((known) => known.id === "BAAI/bge-small-en-v1.5");
    const withoutPrompts = Buffer.from(JSON.stringify({ __version__: {} }));
    const server = await hubWith({ "config_sentence_transformers.json": withoutPrompts }, { id, commit: revision });
    const changed = await byName(t, server, id.toLowerCase(), { backend: "onnx" }, identity);
    assert.ok(server.hub.requests[0].path.includes(revision));
    const snapshot = path.join(server.options.cacheFolder, "models--BAAI--bge-small-en-v1.5/snapshots", revision);
    const asFolder = (options) => withEmbedder(snapshot, { backend: "onnx", ...options }, identity);
    assert.deepEqual(changed, await asFolder({ queryPrompt, documentPrompt: "" }));
    const plain = await asFolder({});
    assert.notDeepEqual(changed.query, plain.query, "the prompt makes a difference");
    assert.deepEqual(changed.documents, plain.documents);
    assert.notEqual(changed.fingerprint, plain.fingerprint, "which the fingerprint tells");
    assert.deepEqual(
      await byName(t, server, id, { backend: "onnx", queryPrompt: "" }, identity),
      plain,
      "an option overrides",
    );
  });

  test("a folder's own prompts go before the table's", async (t) => {
    const { id, revision } = KNOWN_MODELS.find((known) => known.id === "intfloat/e5-small-v2");
    const own = Buffer.from(JSON.stringify({ prompts: { query: "ask: ", passage: "tell: " } }));
    const server = await hubWith({ "config_sentence_transformers.json": own }, { id, commit: revision });
    const named = await byName(t, server, id, { backend: "onnx" }, identity);
    const folder = path.join(server.options.cacheFolder, "models--intfloat--e5-small-v2/snapshots", revision);
    assert.deepEqual(named, await withEmbedder(folder, { backend: "onnx" }, identity));
  });

  test("a folder of that name is the folder", async (t) => {
    const { hub, options } = await hubWith();
    const parent = temporaryFolder();
    mkdirSync(path.join(parent, "org"));
    symlinkSync(await model("bert_mean"), path.join(parent, "org/model"), "junction");
    const back = process.cwd();
    t.after(() => process.chdir(back));
    process.chdir(parent);
    await byName(t, { hub, options }, ID, { backend: "onnx" }, async ({ dimension }) => assert.ok(dimension > 0));
    assert.deepEqual(hub.requests, []);
    await assert.rejects(Embedder.load("./org/other"), embedderError("MODEL_NOT_FOUND", path.join("org", "other")));
    await assert.rejects(
      byName(t, { hub, options }, "org/other", { backend: "onnx" }, identity),
      embedderError("MODEL_NOT_FOUND", "no model org/other", "./org/other"),
    );
  });

  test("can be given up while downloading", async (t) => {
    const server = await hubWith();
    const controller = new AbortController();
    server.hub.fault(
      "cdn",
      /safetensors/,
      sendUntil(100_000, () => controller.abort("enough")),
    );
    await assert.rejects(
      byName(t, server, ID, { backend: "onnx", signal: controller.signal }, identity),
      (error) => error.name === "AbortError" && error.cause === "enough",
    );
  });

  test("synchronous init takes folders only", () => {
    assert.throws(() => api.init(ID), embedderError("MODEL_NOT_FOUND", "no folder org/model", "pull"));
  });
});

test("the table of known models is well-formed and cannot be changed", () => {
  const ids = KNOWN_MODELS.map(({ id }) => id.toLowerCase());
  assert.equal(new Set(ids).size, ids.length);
  assert.equal(new Set(KNOWN_MODELS.map(({ revision }) => revision)).size, ids.length);
  for (const known of KNOWN_MODELS) {
    assert.match(known.revision, /^[0-9a-f]{40}$/, known.id);
    assert.match(known.id, /^[\w-]+\/[\w.-]+$/);
    assert.ok(["bert", "nomic_bert"].includes(known.architecture));
    assert.ok(["cls", "mean"].includes(known.pooling));
    assert.ok(["mit", "apache-2.0"].includes(known.license));
    assert.ok(known.dimension >= 384 && known.maxTokens >= 128 && known.parameters > 1e7);
    for (const prompt of [known.queryPrompt, known.documentPrompt]) assert.ok(prompt === "" || prompt.endsWith(": "));
    assert.ok(Object.isFrozen(known));
  }
  assert.ok(Object.isFrozen(KNOWN_MODELS));
});

test("the fixture's hashes are those that git and the Hub compute", () => {
  assert.equal(gitHash(Buffer.from("hello\n")), "ce013625030ba8dba906f756967f9e9ca394464a");
  assert.equal(sha256(Buffer.from("")), createHash("sha256").digest("hex"));
});
