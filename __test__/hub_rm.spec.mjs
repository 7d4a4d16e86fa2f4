/** What `models` shows of the Hub's cache, and what `rm` deletes from it. */

import assert from "node:assert/strict";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { MAIN, run } from "./support/command_line.mjs";
import { FIXTURE, hubWith, ID, NEEDED, repository, tree, WEIGHTS } from "./support/hub.mjs";
import { COMMIT } from "./support/hub_server.mjs";
import { api, temporaryFolder } from "./support/models.mjs";
import * as processes from "./support/processes.mjs";

const { KNOWN_MODELS, pull } = api;
const OTHER = "2".repeat(40);
const MODEL_BYTES = NEEDED.reduce((sum, name) => sum + FIXTURE[name].length, 0);
const LINUX = { skip: process.platform !== "linux" && "needs script(1) of Linux" };

const inCache = (args, { cacheFolder }) => run([...args, "--cache-folder", cacheFolder]);

async function json(args, options) {
  const { status, stdout, stderr } = await inCache([...args, "--json"], options);
  assert.deepEqual([status, stderr], [0, ""]);
  return JSON.parse(stdout);
}

/** A cache with two commits of a model, which differ in their weights only. */
async function twoCommits() {
  const { hub, options } = await hubWith({}, { branches: { main: COMMIT, dev: OTHER } });
  const [main, old] = [await pull(ID, options), hub.models[ID].files];
  const weights = Buffer.from(WEIGHTS);
  weights[weights.length - 1] ^= 1;
  hub.models[ID].files = { ...old, "model.safetensors": weights };
  const dev = await pull(`${ID}@dev`, options);
  return { options, main, dev };
}

/** Bytes on the disk, each file once. */
function bytesBelow(folder) {
  const files = tree(folder).map((name) => lstatSync(path.join(folder, name)));
  const sizes = new Map(files.filter((stat) => stat.isFile()).map(({ ino, size }) => [ino, size]));
  return [...sizes.values()].reduce((sum, size) => sum + size, 0);
}

test("models: what is downloaded, with its size and revision", async () => {
  const { options, main, dev } = await twoCommits();
  const found = { bytes: MODEL_BYTES };
  assert.deepEqual(await json(["models", "--downloaded"], options), [
    { id: ID, commit: COMMIT, refs: ["main"], ...found, folder: main },
    { id: ID, commit: OTHER, refs: ["dev"], ...found, folder: dev },
  ]);
  const { stdout } = await inCache(["models", "--downloaded"], options);
  assert.match(stdout, new RegExp(`^${ID} +dev +${OTHER} +${(MODEL_BYTES / 1e6).toFixed(1)} MB$`, "m"));
  assert.ok((await json(["models"], options)).every(({ downloaded }) => downloaded.length === 0));

  const [{ id, revision }, ...others] = KNOWN_MODELS;
  const known = await hubWith({}, { id, commit: revision });
  const folder = await pull(id, known.options);
  const models = await json(["models"], known.options);
  assert.deepEqual(models[0].downloaded, [{ commit: revision, refs: [], ...found, folder }]);
  assert.deepEqual(
    models.slice(1).map(({ downloaded, ...facts }) => [facts, downloaded]),
    others.map((facts) => [facts, []]),
  );
  const shown = await inCache(["models"], known.options);
  assert.match(shown.stdout, new RegExp(`^${id} .* MB \\(${revision.slice(0, 7)}\\)$`, "m"));
});

test("models: other things in a cache folder, and a missing one, are no models", async () => {
  const cacheFolder = temporaryFolder();
  for (const name of [
    "datasets--org--data",
    "models--gpt2",
    ".locks",
    "models--a--..",
    `models--org--empty/snapshots`,
  ]) {
    mkdirSync(path.join(cacheFolder, name, COMMIT), { recursive: true });
  }
  writeFileSync(path.join(cacheFolder, "models--org--file"), "");
  const [empty, ...others] = await json(["models", "--downloaded"], { cacheFolder });
  assert.deepEqual([empty.id, empty.bytes, others], ["org/empty", 0, []]);
  assert.deepEqual(await json(["models", "--downloaded"], { cacheFolder: path.join(cacheFolder, "none") }), []);
});

test("rm: one revision; what another one needs stays, and the bytes are those on the disk", async () => {
  const { options, main } = await twoCommits();
  const before = bytesBelow(options.cacheFolder);
  const { freedBytes, ...result } = await json(["rm", `${ID}@dev`, "--yes"], options);
  assert.deepEqual(result, { model: ID, commits: [OTHER], sharedBytes: 0 });
  assert.equal(freedBytes, before - bytesBelow(options.cacheFolder));
  assert.ok(freedBytes >= WEIGHTS.length && freedBytes < MODEL_BYTES);
  assert.equal(await pull(ID, { ...options, offline: true, verify: true }), main);
  assert.ok(tree(options.cacheFolder).every((name) => !name.includes("dev") && !name.includes(OTHER)));
  assert.equal(readdirSync(path.join(repository(options), "blobs")).length, NEEDED.length);
});

test("rm: without links, hard links are counted once and freed with the last", async (t) => {
  process.env.HF_HUB_DISABLE_SYMLINKS = "1";
  t.after(() => delete process.env.HF_HUB_DISABLE_SYMLINKS);
  const { options, main } = await twoCommits();
  const before = bytesBelow(options.cacheFolder);
  const { freedBytes } = await json(["rm", `${ID}@${OTHER}`, "--yes"], options);
  assert.equal(freedBytes, before - bytesBelow(options.cacheFolder));
  assert.ok(freedBytes >= WEIGHTS.length && freedBytes < MODEL_BYTES);
  assert.equal(await pull(ID, { ...options, offline: true, verify: true }), main);
});

test("rm: all of a model, partial downloads included, and no other model", async () => {
  const { options } = await twoCommits();
  const other = path.join(options.cacheFolder, "models--org--model-large");
  mkdirSync(path.join(other, "snapshots", COMMIT), { recursive: true });
  writeFileSync(path.join(repository(options), "blobs/abc.semantic-search.incomplete"), "part");
  const before = bytesBelow(options.cacheFolder);
  const { status, stdout } = await inCache(["rm", ID, "-y"], options);
  assert.equal(status, 0);
  assert.equal(stdout, `deleted 2 revisions of ${ID}, freed ${(before / 1e6).toFixed(1)} MB\n`);
  assert.deepEqual(readdirSync(options.cacheFolder), ["models--org--model-large"]);
});

test("rm: deletes nothing outside of the model's folder in the cache", async () => {
  const outside = temporaryFolder();
  const file = path.join(outside, "file");
  const folder = path.join(outside, "folder");
  mkdirSync(folder);
  for (const name of [file, path.join(folder, COMMIT), path.join(folder, "main")]) writeFileSync(name, "not yours");
  for (const revision of [ID, `${ID}@main`]) {
    const { options, main } = await twoCommits();
    symlinkSync(file, path.join(main, "link"));
    symlinkSync("../../../../../file", path.join(main, "blob"));
    symlinkSync(folder, path.join(main, "folder"));
    assert.equal((await inCache(["rm", revision, "-y"], options)).status, 0);
    assert.ok(!existsSync(main));
  }
  for (const part of ["", "blobs", "refs", "snapshots", "trees"]) {
    const { options } = await twoCommits();
    const target = path.join(repository(options), part);
    const moved = path.join(temporaryFolder(), "moved");
    renameSync(target, moved);
    symlinkSync(moved, target);
    const before = tree(moved);
    for (const revision of [ID, `${ID}@main`]) {
      const { status, stderr } = await inCache(["rm", revision, "-y"], options);
      assert.equal(status, 1);
      assert.match(stderr, /^error \[MODEL_INVALID\]: .* is a link out of the cache/);
    }
    assert.deepEqual(tree(moved), before);
  }
  assert.deepEqual(tree(outside), ["file", `folder/${COMMIT}`, "folder/main"]);
  for (const name of ["../x/y", "org/..", "..", `org/model@../../${"x"}`, "/etc/passwd"]) {
    const { status } = await inCache(["rm", name, "-y"], { cacheFolder: outside });
    assert.equal(status, 2, name);
  }
});

test("rm: a blob in the store that models share stays there", async () => {
  const { options, main } = await twoCommits();
  const blob = realpathSync(path.join(main, "model.safetensors"));
  const shared = path.join(options.cacheFolder, "blobs/ab", "ab".repeat(32));
  mkdirSync(path.dirname(shared), { recursive: true });
  renameSync(blob, shared);
  symlinkSync(path.relative(path.dirname(blob), shared), blob);
  const args = ["rm", `${ID}@main`, "--yes"];
  const { stderr } = await inCache(args, options);
  assert.match(stderr, /^\d+\.\d MB stay in the store .* shares between models\n$/);
  assert.equal(statSync(shared).size, WEIGHTS.length);
  assert.ok(!existsSync(blob) && !readdirSync(path.dirname(blob)).includes(path.basename(blob)));
});

test("rm: a model or revision that is not there is an error that names what is", async () => {
  const { options } = await twoCommits();
  for (const [name, ...parts] of [
    ["org/none", "org/none is not in the cache", options.cacheFolder],
    [`${ID}@v9`, `${ID}@v9 is not in the cache`, `it holds ${ID}@dev, ${ID}@main, ${ID}@${COMMIT}, ${ID}@${OTHER}`],
  ]) {
    const { status, stderr } = await inCache(["rm", name, "--yes"], options);
    assert.equal(status, 1);
    for (const part of ["error [MODEL_NOT_FOUND]", ...parts]) assert.ok(stderr.includes(part), `${part} in ${stderr}`);
  }
});

test("rm: without a terminal it requires --yes", async () => {
  const { options, main } = await twoCommits();
  const { status, stderr } = await inCache(["rm", ID], options);
  assert.equal(status, 2);
  assert.match(stderr, /^error \[USAGE\]: .*2 revisions of org\/model.*--yes/);
  assert.ok(existsSync(main));
});

test("rm: on a terminal it asks", LINUX, async (t) => {
  const isThere = await processes.run("script", ["--version"]).catch(() => undefined);
  if (isThere?.status !== 0) return t.skip("script(1) is not installed");
  const { options, main } = await twoCommits();
  const ask = async (answer) => {
    const args = [process.execPath, MAIN, "rm", ID, "--cache-folder", options.cacheFolder];
    const command = args.map((argument) => `'${argument}'`).join(" ");
    const { child, ended, says } = processes.start("script", ["-qec", command, "/dev/null"]);
    await says(/delete 2 revisions of org\/model \(\d+\.\d MB\) from .*\? \[y\/N\]/);
    child.stdin.write(answer);
    return (await ended).status;
  };
  for (const [answer, status] of [
    ["n\n", 1],
    ["\n", 1],
    ["\u0004", 1],
    ["\u0003", 130],
  ]) {
    assert.equal(await ask(answer), status, JSON.stringify(answer));
    assert.ok(existsSync(main));
  }
  assert.equal(await ask("y\n"), 0);
  assert.ok(!existsSync(repository(options)));
});
