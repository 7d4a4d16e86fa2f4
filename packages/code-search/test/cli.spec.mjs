/** The command line: what it says and how it ends. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { contentsOf, filesIn, folderWith, run, TINY_MODEL, write } from "./folders.mjs";

const MODEL = `--model=${TINY_MODEL}`;

for (const [what, args, status, message] of [
  ["no command", [], 2, /code-search index \[dir\]/],
  ["an unknown command", ["find", "x"], 2, /code-search index \[dir\]/],
  ["an unknown option", ["search", "x", "--jsn"], 2, /--jsn/],
  ["an empty question", ["search", " "], 2, /code-search search/],
  ["a question in several words", ["search", "a", "b"], 2, /code-search search/],
  ["a limit that is no number", ["search", "x", "--limit=many"], 2, /--limit is a number from 1 to 1000/],
  ["a folder that is not there", ["index", "no-such-folder", MODEL], 1, /no-such-folder is not a folder/],
  ["a model that is not there", ["index", "{dir}", "--model=no-such-model"], 1, /no-such-model/],
  [
    "a folder that is not indexed",
    ["search", "x", "--dir={dir}", MODEL],
    1,
    /nothing is indexed .*: run code-search index/,
  ],
]) {
  test(`${what} ends with exit code ${status} and says so`, async () => {
    const dir = folderWith({ "a.js": "function a() {}\n" });
    const outcome = await run(args.map((argument) => argument.replace("{dir}", dir)));
    assert.equal(outcome.status, status, outcome.stderr);
    assert.match(outcome.stderr, message);
    assert.doesNotMatch(outcome.stderr, /^ {4}at /m, "no stack");
    assert.equal(outcome.stdout, "");
  });
}

test("an empty folder is indexed, and has nothing to be searched", async () => {
  const dir = folderWith();
  assert.equal((await run(["index", dir, MODEL])).status, 0);
  const { status, stderr } = await run(["search", "x", `--dir=${dir}`, MODEL]);
  assert.equal(status, 1);
  assert.match(stderr, /nothing is indexed/);
});

test("a damaged index is named, with what to do", async () => {
  const dir = folderWith({ ".code-search/index.db": "this is no database ".repeat(100) });
  for (const args of [
    ["index", dir],
    ["search", "x", `--dir=${dir}`],
  ]) {
    const { status, stderr } = await run([...args, MODEL]);
    assert.equal(status, 1);
    assert.match(stderr, /index\.db: file is not a database \(if it is damaged, remove it and index again\)\n$/);
  }
});

test("the model may come from the environment; --json is for tools", async () => {
  const env = { SEMANTIC_SEARCH_MODEL: TINY_MODEL };
  const dir = folderWith({ "sub/a.js": "\n// Adds up.\nfunction add(a, b) {\n  return a + b;\n}\n" });
  assert.match((await run(["index", dir], { env })).stdout, /^1 files, 1 chunks: 1 files embedded/);
  const { stdout, stderr } = await run(["search", "add", `--dir=${dir}`, "--json"], { env });
  assert.equal(stderr, "");
  const [{ similarity, score, ...hit }] = JSON.parse(stdout);
  assert.ok(similarity >= -1 && similarity <= 1);
  assert.equal(score, 2 / 61);
  assert.deepEqual(hit, {
    path: "sub/a.js",
    line: 3,
    name: "add",
    startLine: 2,
    endLine: 5,
    snippet: [
      { line: 2, text: "// Adds up." },
      { line: 3, text: "function add(a, b) {" },
      { line: 4, text: "  return a + b;" },
      { line: 5, text: "}" },
    ],
  });
});

test("Ctrl-C leaves an index that the next run completes", { skip: process.platform === "win32" }, async () => {
  const dir = folderWith();
  for (let file = 0; file < 400; file++) write(dir, `f${file}.py`, `def a${file}():\n    pass\n`.repeat(20));
  const interrupt = (child) => {
    const watching = setInterval(() => {
      if (filesIn(dir) === 0) return;
      clearInterval(watching);
      child.kill("SIGINT");
    }, 2);
  };
  const { status, stderr } = await run(["index", dir, MODEL], { started: interrupt });
  assert.equal(status, 130, stderr);
  assert.match(stderr, /interrupted: \d+ files are in the index/);
  const done = await run(["index", dir, MODEL]);
  assert.match(done.stdout, /^400 files, /);
  const { counts } = contentsOf(dir);
  assert.equal(new Set(counts).size, 1);
});

test("control characters of names and of source code are shown, not obeyed", {
  skip: process.platform === "win32",
}, async () => {
  const name = "a\u001b[31m\u009b2J.js";
  const dir = folderWith({
    [name]: "// Clears \u001b]0;title\u0007 the screen.\r\nfunction clear() {\r\n  return 1;\r\n}\r\n",
  });
  const index = await run(["index", dir, MODEL]);
  assert.equal(index.status, 0, index.stderr);
  const found = await run(["search", "clear", `--dir=${dir}`, MODEL]);
  const json = await run(["search", "clear", `--dir=${dir}`, "--json", MODEL]);
  const refused = await run(["search", "clear", `--dir=${dir}/${name}/\u001b[2J`, MODEL]);
  for (const text of [found.stdout, json.stdout, refused.stderr]) {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not come out.
    assert.doesNotMatch(text, /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/);
    assert.match(text, /\\u001b/);
  }
  assert.match(found.stdout, /^a\\u001b\[31m\\u009b2J\.js:\d+/);
  assert.doesNotMatch(found.stdout, /\\u000d/);
  assert.equal(JSON.parse(json.stdout)[0].path, name);
});
