/** Damage to the Hub's cache between two downloads: refs in each other's way, damaged bytes, files in the way. */

import assert from "node:assert/strict";
import { existsSync, lstatSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { describe, test } from "node:test";
import { run } from "./support/command_line.mjs";
import { FIXTURE, hubWith, ID, repository } from "./support/hub.mjs";
import { COMMIT, etagOf, refuse } from "./support/hub_server.mjs";
import { api, embedderError } from "./support/models.mjs";

const { pull } = api;
const WEIGHTS = "model.safetensors";
const OTHER = "2".repeat(40);

/** Changes one byte, and neither length nor time of day. */
function flipByte(file, position = 5000) {
  const bytes = readFileSync(file);
  bytes[position % bytes.length] ^= 1;
  writeFileSync(file, bytes);
}

function assertRight(folder) {
  for (const [name, bytes] of Object.entries(FIXTURE)) {
    const file = path.join(folder, name);
    if (existsSync(file)) assert.deepEqual(readFileSync(file), bytes, name);
  }
}

describe("refs whose files are in each other's way", () => {
  for (const [first, second] of [
    ["a", "a/b"],
    ["a/b", "a"],
    ["a/b/c", "a/b"],
    ["a", "a/b/c"],
  ]) {
    test(`${second} after ${first}: both are found offline`, async () => {
      const { hub, options } = await hubWith({}, { branches: { [first]: COMMIT, [second]: OTHER } });
      const expected = {
        [first]: await pull(`${ID}@${first}`, options),
        [second]: await pull(`${ID}@${second}`, options),
      };
      assert.equal(path.basename(expected[first]), COMMIT);
      assert.equal(path.basename(expected[second]), OTHER);
      for (const [revision, folder] of Object.entries(expected)) {
        assert.equal(await pull(`${ID}@${revision}`, { ...options, offline: true }), folder);
      }
      // What moves on is followed, and the cached state of it too.
      hub.models[ID].branches[second] = COMMIT;
      assert.equal(await pull(`${ID}@${second}`, options), expected[first]);
      assert.equal(await pull(`${ID}@${second}`, { ...options, offline: true }), expected[first]);
      await assert.rejects(
        pull(`${ID}@elsewhere`, { ...options, offline: true }),
        embedderError("MODEL_NOT_FOUND", `${ID}@${first}`, `${ID}@${second}`),
      );
    });
  }

  test("a ref moves to its own place as soon as that is free, and the old file is ignored", async () => {
    const { hub, options } = await hubWith({}, { branches: { a: COMMIT, "a/b": COMMIT } });
    await pull(`${ID}@a`, options);
    await pull(`${ID}@a/b`, options);
    assert.ok(lstatSync(path.join(repository(options), "refs/a")).isFile());
    rmSync(path.join(repository(options), "refs/a"));
    hub.models[ID].branches["a/b"] = OTHER;
    const folder = await pull(`${ID}@a/b`, options);
    assert.equal(readFileSync(path.join(repository(options), "refs/a/b"), "utf8"), OTHER);
    rmSync(path.join(repository(options), "refs/a/b"));
    await assert.rejects(pull(`${ID}@a/b`, { ...options, offline: true }), embedderError("MODEL_NOT_FOUND"));
    assert.equal(path.basename(folder), OTHER);
  });
});

describe("file system errors have a code", () => {
  for (const inTheWay of [
    "refs",
    "blobs",
    "snapshots",
    `snapshots/${COMMIT}`,
    "trees",
    `snapshots/${COMMIT}/config.json/x`,
  ]) {
    test(`a file is in the way of ${inTheWay}`, async () => {
      const { options } = await hubWith();
      mkdirSync(path.dirname(path.join(repository(options), inTheWay)), { recursive: true });
      writeFileSync(path.join(repository(options), inTheWay), "in the way");
      await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "cannot write into the cache"));
    });
  }

  test("an error thrown by onProgress reaches the caller, even if it looks like a file system error", async () => {
    const { options } = await hubWith();
    const mine = Object.assign(new Error("EACCES: mine"), { code: "EACCES", syscall: "open" });
    const onProgress = () => {
      throw mine;
    };
    await assert.rejects(pull(ID, { ...options, onProgress }), (error) => error === mine);
    const keep = { HF_ENDPOINT: options.endpoint, HF_HUB_CACHE: options.cacheFolder };
    Object.assign(process.env, keep);
    for (const backend of ["onnx", "auto"]) {
      await assert.rejects(api.Embedder.load(ID, { backend, onProgress }), (error) => error === mine);
    }
    for (const name of Object.keys(keep)) delete process.env[name];
  });
});

describe("pull with verify", () => {
  test("finds a flipped byte and downloads only that file again", async () => {
    for (const revision of ["main", COMMIT]) {
      for (const name of [WEIGHTS, "tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json"]) {
        const { hub, options } = await hubWith();
        const folder = await pull(`${ID}@${revision}`, options);
        flipByte(path.join(folder, name));
        hub.requests.length = 0;
        const progress = [];
        const onProgress = (report) => progress.push(report);
        assert.equal(await pull(`${ID}@${revision}`, { ...options, verify: true, onProgress }), folder);
        assertRight(folder);
        const asked = new Set(hub.fileRequests().map((request) => request.split(" ")[1]));
        assert.deepEqual([...asked], [path.posix.basename(name)]);
        for (const { done, total } of progress) assert.ok(done <= total, `${done} of ${total}`);
        assert.ok(progress.some((report) => report.isVerification));
        assert.equal(progress.at(-1).done, progress.at(-1).total);
      }
    }
  });

  test("downloads nothing that is intact; a pinned commit needs no network", async () => {
    const { hub, options } = await hubWith();
    const folder = await pull(`${ID}@${COMMIT}`, options);
    hub.requests.length = 0;
    assert.equal(await pull(`${ID}@${COMMIT}`, { ...options, verify: true }), folder);
    assert.deepEqual(hub.requests, []);
    assert.equal(await pull(`${ID}@${COMMIT}`, { ...options, verify: true, offline: true }), folder);
    await pull(ID, { ...options, verify: true });
    assert.deepEqual(hub.fileRequests(), []);
  });

  test("names the damaged file when offline", async () => {
    const { hub, options } = await hubWith();
    const folder = await pull(ID, options);
    flipByte(path.join(folder, WEIGHTS));
    const expected = embedderError("MODEL_INVALID", path.join(folder, WEIGHTS), etagOf(FIXTURE[WEIGHTS]), "offline");
    await assert.rejects(pull(ID, { ...options, verify: true, offline: true }), expected);
    // A Hub that is not there is no reason to believe what is.
    hub.fault("hub", /./, (response) => refuse(response, 503), 100);
    await assert.rejects(pull(ID, { ...options, verify: true }), embedderError("MODEL_INVALID", WEIGHTS, "503"));
    // Without `verify`, the size decides.
    assert.equal(await pull(ID, { ...options, offline: true }), folder);
  });

  test("checks copies instead of links, and blobs that a new snapshot would reuse", async (t) => {
    process.env.HF_HUB_DISABLE_SYMLINKS = "1";
    t.after(() => delete process.env.HF_HUB_DISABLE_SYMLINKS);
    const { hub, options } = await hubWith({}, { branches: { main: COMMIT } });
    const folder = await pull(ID, options);
    flipByte(path.join(folder, WEIGHTS));
    flipByte(path.join(repository(options), "blobs", etagOf(FIXTURE["tokenizer.json"])));
    hub.models[ID].branches.main = OTHER;
    assertRight(await pull(ID, { ...options, verify: true }));
    assertRight(await pull(`${ID}@${OTHER}`, { ...options, offline: true, verify: true }));
  });

  test("checks a cache without lists of files, as left by older libraries, by the names of its blobs", async () => {
    const { options } = await hubWith();
    const folder = await pull(ID, options);
    rmSync(path.join(repository(options), "trees"), { recursive: true });
    assert.equal(await pull(ID, { ...options, verify: true, offline: true }), folder);
    flipByte(path.join(folder, WEIGHTS));
    await assert.rejects(
      pull(ID, { ...options, verify: true, offline: true }),
      embedderError("MODEL_INVALID", path.join(folder, WEIGHTS), "hash"),
    );
    rmSync(path.join(folder, WEIGHTS));
    writeFileSync(path.join(folder, WEIGHTS), FIXTURE[WEIGHTS]);
    await assert.rejects(
      pull(ID, { ...options, verify: true, offline: true }),
      embedderError("MODEL_INVALID", path.join(folder, WEIGHTS), "the cache does not tell its hash"),
    );
  });

  test("can be aborted", async () => {
    const { options } = await hubWith();
    await pull(ID, options);
    const controller = new AbortController();
    const onProgress = () => controller.abort();
    await assert.rejects(pull(ID, { ...options, verify: true, onProgress, signal: controller.signal }), {
      code: "ABORT_ERR",
    });
  });

  test("works on the command line", async () => {
    const { options } = await hubWith();
    const args = ["pull", ID, "--endpoint", options.endpoint, "--cache-folder", options.cacheFolder];
    const folder = (await run(args)).stdout.trim();
    flipByte(path.join(folder, WEIGHTS));
    assert.deepEqual((await run(args)).stdout.trim(), folder);
    const refused = await run([...args, "--verify", "--offline"]);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /error \[MODEL_INVALID\]: .*model\.safetensors: its bytes do not have the hash/);
    const mended = await run([...args, "--verify"]);
    assert.equal(mended.status, 0, mended.stderr);
    assert.match(mended.stderr, /^verifying model\.safetensors$/m);
    assert.match(mended.stderr, /^downloading model\.safetensors$/m);
    assertRight(folder);
  });
});
