/** An index that follows its folder. The model is tiny and knows nothing: what is tested is which rows there are. */

import assert from "node:assert/strict";
import { cpSync, renameSync, rmSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
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

test("another model makes the index anew, of another dimension too", async () => {
  const dir = folderWith(FILES);
  await indexed(dir);
  const other = await indexed(dir, { model: OTHER_TINY_MODEL });
  assert.deepEqual([other.wasReset, other.changed], [true, 3]);
  const back = await indexed(dir);
  assert.deepEqual([back.wasReset, back.changed], [true, 3]);
  await assertAsNew(dir, FILES);

  await indexed(dir, { model: OTHER_TINY_MODEL });
  const { status, stderr } = await run(["search", "a", `--dir=${dir}`, `--model=${TINY_MODEL}`]);
  assert.equal(status, 1);
  assert.match(stderr, /of another model or version: run code-search index/);
});

test("an aborted run leaves whole files, and the next one does the rest", async () => {
  const files = Object.fromEntries(
    Array.from({ length: 300 }, (_, file) => [
      `f${file}.py`,
      `def a${file}():\n    pass\n\n\ndef b():\n    pass\n`.repeat(9),
    ]),
  );
  const dir = folderWith(files);
  const stop = new AbortController();
  const onProgress = ({ done }) => done >= 20 && stop.abort();
  await assert.rejects(indexed(dir, { signal: stop.signal, onProgress }), { name: "AbortError" });
  const { counts, chunks } = contentsOf(dir);
  const kept = new Set(chunks.map((chunk) => chunk.path)).size;
  assert.ok(kept >= 20 && kept < 300, `${kept} files`);
  assert.ok(counts.every((count) => count === chunks.length));
  assert.equal((await indexed(dir)).changed, 300 - kept);
  await assertAsNew(dir, files);
});

test("several indexers at once do not double anything, nor get in each other's way", async () => {
  for (let round = 0; round < 3; round++) {
    const dir = folderWith(FILES);
    const args = ["index", dir, `--model=${TINY_MODEL}`];
    const outcomes = await Promise.all([run(args), run(args), run(args), run(args)]);
    for (const { status, stderr } of outcomes) assert.equal(status, 0, stderr);
    await assertAsNew(dir, FILES);
  }
});

test("the same on a real package of the registry", async () => {
  const dir = folderWith();
  cpSync(path.join(REPOSITORY, "node_modules/@huggingface/tokenizers"), dir, { recursive: true });
  const { files, chunks } = await indexed(dir);
  assert.ok(files > 20 && chunks > files / 2, `${files} files, ${chunks} chunks`);
  const { counts } = contentsOf(dir);
  assert.deepEqual(counts, [chunks, chunks, chunks]);
});
