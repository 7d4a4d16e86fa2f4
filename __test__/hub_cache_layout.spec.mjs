/** What a download leaves in the Hub's cache, and where that is. No test reaches the real Hub. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { assertComplete, FIXTURE, hubWith, ID, NEEDED, repository, tree, WEIGHTS } from "./support/hub.mjs";
import { COMMIT, etagOf, gitHash, refuse, sha256 } from "./support/hub_server.mjs";
import { api, embedderError, temporaryFolder } from "./support/models.mjs";

const { pull } = api;

test("the cache has the layout of Python's huggingface_hub, and holds only the files that loading reads", async () => {
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

test("the cache holds plain files where links cannot be made", async (t) => {
  process.env.HF_HUB_DISABLE_SYMLINKS = "1";
  t.after(() => delete process.env.HF_HUB_DISABLE_SYMLINKS);
  const { options } = await hubWith();
  const folder = await pull(ID, options);
  assertComplete(folder);
  for (const name of NEEDED) assert.ok(lstatSync(path.join(folder, name)).isFile(), name);
});

test("a cache left by Python, without a list of files, serves offline", async () => {
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

test("a blob that Python keeps in the store that models share has the hash of its own name", async () => {
  const { options } = await hubWith();
  const folder = await pull(ID, options);
  const blob = realpathSync(path.join(folder, "model.safetensors"));
  // Named by another hash than that of the bytes.
  const shared = path.join(options.cacheFolder, "blobs/ab", "ab".repeat(32));
  mkdirSync(path.dirname(shared), { recursive: true });
  renameSync(blob, shared);
  symlinkSync(path.relative(path.dirname(blob), shared), blob);
  rmSync(path.join(repository(options), "trees"), { recursive: true });
  assert.equal(await pull(ID, { ...options, offline: true, verify: true }), folder);
});

test("the environment says where the cache and the token are", async (t) => {
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

test("the old state of a branch is kept until the new one is complete; files in both are downloaded once", async () => {
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

test("a damaged blob is downloaded again", async () => {
  const { options } = await hubWith();
  const folder = await pull(`${ID}@${COMMIT}`, options);
  truncateSync(path.join(folder, "model.safetensors"), 1000);
  await assert.rejects(
    pull(`${ID}@${COMMIT}`, { ...options, offline: true }),
    embedderError("MODEL_NOT_FOUND", "without model.safetensors"),
  );
  assertComplete(await pull(`${ID}@${COMMIT}`, options));
});

test("a cache that cannot be written to is reported as such", {
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

test("a cache that has everything need not be writable", async () => {
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

test("a cache folder that is a file is reported as such", async () => {
  const { options } = await hubWith();
  const file = path.join(temporaryFolder(), "file");
  writeFileSync(file, "");
  await assert.rejects(
    pull(ID, { ...options, cacheFolder: file }),
    embedderError("DOWNLOAD_FAILED", "cannot write into the cache", "HF_HOME"),
  );
});

test("the test server's hashes are those that git and the Hub compute", () => {
  assert.equal(gitHash(Buffer.from("hello\n")), "ce013625030ba8dba906f756967f9e9ca394464a");
  assert.equal(sha256(Buffer.from("")), createHash("sha256").digest("hex"));
});
