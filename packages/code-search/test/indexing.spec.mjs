/** An index that follows its folder. The model is tiny and knows nothing: what is tested is which rows there are. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, readFileSync, renameSync, rmdirSync, rmSync, symlinkSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { IndexDatabase } from "../lib/database.mjs";
import { importWords, refinementOrder } from "../lib/importance.mjs";
import { lockIndex } from "../lib/index_folder.mjs";
import {
  assertClose,
  contentsOf,
  folderWith,
  indexed,
  OTHER_TINY_MODEL,
  REPOSITORY,
  run,
  TINY_MODEL,
  write,
} from "./folders.mjs";

const FILES = {
  "a.js": "export function a() { return 1; }\n",
  "lib/b.py": "def b():\n    return 2\n",
  "empty.txt": "",
};

/** What one index holds must be what an index made in one go holds. */
async function assertAsNew(dir, files) {
  const { chunks, counts, vectors } = contentsOf(dir);
  const fresh = folderWith(files);
  await indexed(fresh);
  const expected = contentsOf(fresh);
  assert.deepEqual(chunks, expected.chunks);
  assert.deepEqual(counts, expected.counts);
  assertClose(vectors, expected.vectors);
}

test("adds, changes, removes and renames embed what is new and nothing else", async () => {
  const dir = folderWith(FILES);
  const first = await indexed(dir);
  assert.deepEqual([first.files, first.changed, first.chunks, first.removed], [3, 3, 2, 0]);
  await assertAsNew(dir, FILES);

  const again = await indexed(dir);
  assert.deepEqual([again.files, again.changed, again.chunks, again.removed], [3, 0, 0, 0]);

  const changed = { ...FILES, "a.js": "export function a() { return 3; }\n", "c.go": "package c\n\nfunc C() {}\n" };
  write(dir, "a.js", changed["a.js"]);
  write(dir, "c.go", changed["c.go"]);
  assert.equal((await indexed(dir)).changed, 2);
  await assertAsNew(dir, changed);

  renameSync(path.join(dir, "lib/b.py"), path.join(dir, "lib/renamed.py"));
  rmSync(path.join(dir, "c.go"));
  const last = await indexed(dir);
  assert.deepEqual([last.changed, last.removed], [1, 2]);
  await assertAsNew(dir, { "a.js": changed["a.js"], "empty.txt": "", "lib/renamed.py": FILES["lib/b.py"] });
});

test("what becomes ignored or binary leaves the index", async () => {
  const dir = folderWith(FILES);
  await indexed(dir);
  write(dir, ".gitignore", "lib/\n");
  write(dir, "a.js", "\0");
  assert.equal((await indexed(dir)).removed, 2);
  await assertAsNew(dir, { ".gitignore": "lib/\n", "empty.txt": "" });
});

test("an index that is a link to elsewhere is refused, and what it names is left alone", async () => {
  const elsewhere = folderWith({ "precious.db": "" });
  for (const [link, target] of [
    [".code-search", elsewhere],
    [".code-search/search.db", path.join(elsewhere, "precious.db")],
    [".code-search/search.db-wal", path.join(elsewhere, "precious.db")],
    [".code-search/lock.db", path.join(elsewhere, "precious.db")],
  ]) {
    const dir = folderWith(FILES);
    mkdirSync(path.dirname(path.join(dir, link)), { recursive: true });
    symlinkSync(target, path.join(dir, link));
    await assert.rejects(indexed(dir), { code: "INDEX_IS_LINK", message: /is a symbolic link/ });
    assert.equal(readFileSync(path.join(elsewhere, "precious.db"), "utf8"), "");
  }
});

test("the chunk at a line, or beside a blank one", async () => {
  const dir = folderWith({ "a.js": "function a() {\n  return 1;\n}\n\n\nfunction b() {\n  return 2;\n}\n" });
  await indexed(dir);
  const database = new IndexDatabase(dir);
  try {
    const names = [1, 3, 4, 5, 6, 8, 13, 14].map((line) => database.chunkAt("a.js", line)?.name);
    assert.deepEqual(names, ["a", "a", "a", "b", "b", "b", "b", undefined]);
    assert.equal(database.chunkAt("b.js", 1), undefined);
  } finally {
    database.close();
  }
});

test("another model makes the index anew, of another dimension too", async () => {
  const dir = folderWith(FILES);
  await indexed(dir);
  const other = await indexed(dir, { model: OTHER_TINY_MODEL });
  assert.deepEqual([other.wasReset, other.changed], [true, 3]);
  const back = await indexed(dir);
  assert.deepEqual([back.wasReset, back.changed], [true, 3]);
  await assertAsNew(dir, FILES);

  await indexed(dir, { model: OTHER_TINY_MODEL });
  const { status, stderr } = await run(["search", "a", dir, `--model=${TINY_MODEL}`]);
  assert.equal(status, 0);
  assert.match(stderr, /^the index was of another model or version: made anew\n/);
});

test("an aborted run keeps what it has computed, and the next one does the rest", async () => {
  const files = Object.fromEntries(
    Array.from({ length: 300 }, (_, file) => [
      `f${file}.py`,
      Array.from({ length: 9 }, (_, part) => `def a${file}_${part}():\n    pass\n`).join("\n\n"),
    ]),
  );
  const dir = folderWith(files);
  const stop = new AbortController();
  const onProgress = ({ done }) => done >= 20 && stop.abort();
  await assert.rejects(indexed(dir, { signal: stop.signal, onProgress }), { name: "AbortError" });
  const { chunks, words, exact } = contentsOf(dir).counts;
  assert.ok(exact >= 20 && exact < chunks, `${exact} of ${chunks}`);
  assert.equal(words, chunks);
  const rest = await indexed(dir);
  assert.deepEqual([rest.changed, rest.chunks], [0, chunks - exact]);
  await assertAsNew(dir, files);
});

test("text that was seen before is not embedded again: another branch, a copy, a file that comes back", async () => {
  const dir = folderWith(FILES);
  await indexed(dir);
  write(dir, "a.js", "export function other() { return 1; }\n");
  assert.equal((await indexed(dir)).chunks, 1);
  write(dir, "a.js", FILES["a.js"]);
  const back = await indexed(dir);
  assert.deepEqual([back.changed, back.chunks], [1, 0]);
  rmSync(path.join(dir, "a.js"));
  await indexed(dir);
  write(dir, "a.js", FILES["a.js"]);
  assert.deepEqual((await indexed(dir)).chunks, 0);
  await assertAsNew(dir, FILES);
});

test("what files import, and the order of refinement", () => {
  const sources = {
    "import a, { b } from './lib/thing.js'": ["import", "a", "b", "from", "lib", "thing", "js"],
    "  from .client import Session": ["from", "client", "import", "session"],
    "use crate::graph::layers;": ["use", "crate", "graph", "layers"],
    "#include <uv/unix.h>": ["include", "uv", "unix", "h"],
    "const x = require('events')": ["const", "x", "require", "events"],
    "imported = 1": [],
  };
  for (const [source, words] of Object.entries(sources)) assert.deepEqual(importWords(`\n${source}\n`), words);
  // Would take minutes if it were quadratic.
  assert.deepEqual(importWords("\n".repeat(500_000)), []);

  const now = Date.now();
  const files = [
    { path: "test/often_imported.js", modifiedMs: 0 },
    { path: "leaf.js", modifiedMs: 0 },
    { path: "recent.js", modifiedMs: now - 1000 },
    { path: "often.js", modifiedMs: 0 },
  ];
  const importsOf = (stem) => (stem === "often" ? 20 : 0);
  const order = refinementOrder(files, { importsOf }, now).map(({ path }) => path);
  assert.deepEqual(order, ["often.js", "recent.js", "leaf.js", "test/often_imported.js"]);
});

test("vectors of text that is gone are kept, but not any number of them", async () => {
  const dir = folderWith(FILES);
  const kept = async () => {
    const database = new IndexDatabase(dir);
    try {
      return Number(database.db.prepare("SELECT count(*) AS n FROM embeddings").get()?.n);
    } finally {
      database.close();
    }
  };
  const counts = [];
  for (let version = 0; version < 20; version++) {
    write(dir, "a.js", `export function a() { return ${version}; }\n`);
    await indexed(dir);
    counts.push(await kept());
  }
  const { chunks } = contentsOf(dir).counts;
  assert.ok(counts[4] > 2 * chunks, `${counts}`);
  assert.ok(Math.max(...counts) <= 6 * chunks, `${counts}`);
});

test("only the files that are named are looked at", async () => {
  const dir = folderWith(FILES);
  await indexed(dir);
  write(dir, "a.js", "export function changed() { return 1; }\n");
  write(dir, "lib/new/c.py", "def c():\n    return 3\n");
  rmSync(path.join(dir, "lib/b.py"));
  const one = await indexed(dir, { changed: new Set(["a.js"]) });
  assert.deepEqual([one.files, one.changed, one.removed], [1, 1, 0]);
  const folder = await indexed(dir, { changed: new Set(["lib"]) });
  assert.deepEqual([folder.files, folder.changed, folder.removed], [1, 1, 1]);
  write(dir, ".gitignore", "lib/\n");
  const rules = await indexed(dir, { changed: new Set([".gitignore"]) });
  assert.deepEqual([rules.files, rules.removed], [3, 1], "other rules concern all files");
});

test("several indexers at once do not double anything, nor get in each other's way", async () => {
  for (let round = 0; round < 3; round++) {
    const dir = folderWith(FILES);
    const args = ["index", dir, `--model=${TINY_MODEL}`];
    const outcomes = await Promise.all([run(args), run(args), run(args), run(args)]);
    let embedded = 0;
    for (const { status, stdout, stderr } of outcomes) {
      assert.equal(status, 0, stderr);
      embedded += Number(/(\d+) files read/.exec(stdout)?.[1]);
    }
    assert.equal(embedded, 3, "they take turns: each file is embedded once");
    await assertAsNew(dir, FILES);
  }
});

test("who waits for another indexer can be stopped, and goes on when that one is killed", async () => {
  const dir = folderWith(FILES);
  const lock = await lockIndex(dir);
  const stop = new AbortController();
  const stopped = lockIndex(dir, { signal: stop.signal, onWait: () => stop.abort() });
  await assert.rejects(stopped, { name: "AbortError" });
  lock.release();

  const folder = JSON.stringify(new URL("../lib/index_folder.mjs", import.meta.url));
  const code = `const { lockIndex } = await import(${folder});
    await lockIndex(process.argv[1]); console.log("locked"); setInterval(() => {}, 1000);`;
  const other = spawn(process.execPath, ["--input-type=module", "-e", code, dir], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(other.stdout, "data");
  let waited = 0;
  const onWait = () => {
    waited++;
    other.kill("SIGKILL");
  };
  (await lockIndex(dir, { onWait })).release();
  assert.equal(waited, 1);
});

test("a folder that cannot be read is skipped, with a warning", { skip: process.platform === "win32" }, async () => {
  // Longer together than the system allows a path to be; made and removed step by step.
  const [name, depth] = ["d".repeat(200), 25];
  const dir = folderWith(FILES);
  const start = process.cwd();
  process.chdir(dir);
  try {
    for (let level = 0; level < depth; level++) {
      mkdirSync(name);
      process.chdir(name);
    }
    const warnings = [];
    const { files } = await indexed(dir, { onWarning: (message) => warnings.push(message) });
    assert.equal(files, 3);
    assert.equal(warnings.length, 1);
    assert.match(warnings[0], /^(d{200}\/)+d{200}: skipped \(ENAMETOOLONG/);
  } finally {
    for (let level = 0; level < depth; level++) {
      process.chdir("..");
      rmdirSync(name);
    }
    process.chdir(start);
  }
});

test("the same on a real package of the registry", async () => {
  const dir = folderWith();
  cpSync(path.join(REPOSITORY, "node_modules/@huggingface/tokenizers"), dir, { recursive: true });
  const { files, chunks } = await indexed(dir);
  assert.ok(files > 20 && chunks > files / 2, `${files} files, ${chunks} chunks`);
  const { counts } = contentsOf(dir);
  assert.ok(counts.chunks >= chunks, "equal texts are embedded once");
  assert.deepEqual(counts, { chunks: counts.chunks, words: counts.chunks, exact: counts.chunks });
});
