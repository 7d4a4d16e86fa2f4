/** The command line: what it says and how it ends. */

import assert from "node:assert/strict";
import * as path from "node:path";
import { test } from "node:test";
import { Reranker } from "semantic-search-native";
import { embeddedText } from "../lib/chunks.mjs";
import { lockIndex } from "../lib/index_folder.mjs";
import { contentsOf, countsOf, folderWith, REPOSITORY, run, TINY_MODEL, write } from "./folders.mjs";

const MODEL = `--model=${TINY_MODEL}`;

for (const [what, args, status, message] of [
  ["no command", [], 2, /^Usage: code-search/],
  ["an unknown command", ["find", "x"], 2, /^error \[USAGE\]: unknown command 'find'/],
  ["an unknown option", ["search", "x", "--jsn"], 2, /^error \[USAGE\]: unknown option '--jsn'/],
  ["an empty question", ["search", " "], 2, /^error \[USAGE\]: the question is empty/],
  ["a question in several words", ["search", "a", "b", "c"], 2, /too many arguments for 'search'/],
  ["a limit that is no number", ["search", "x", "--limit=many"], 2, /--limit .*a whole number from 1 to 1000/],
  ["an unknown device", ["search", "x", "--device=tpu"], 2, /--device .*auto, cpu, gpu/],
  ["a place without a line", ["similar", "a.js", "{dir}"], 2, /such as "src\/main\.js:12", found "a\.js"/],
  ["a place outside of the folder", ["similar", "../a.js:1", "{dir}"], 1, /^error \[OUTSIDE\]: \.\.\/a\.js is not in/],
  ["a folder that is not there", ["index", "no-such-folder", MODEL], 1, /no-such-folder is not a folder/],
  ["a model that is not there", ["index", "{dir}", "--model=no-such-model"], 1, /no-such-model/],
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

test("help: each command's has examples", async () => {
  const { stdout } = await run(["--help"]);
  for (const command of ["index", "search", "similar", "watch", "mcp"]) {
    assert.match(stdout, new RegExp(`^ {2}${command} `, "m"));
    const help = await run([command, "--help"]);
    assert.equal(help.status, 0);
    assert.match(help.stdout, new RegExp(`Examples:\n.*\\$ (claude .* )?code-search ?.* ${command}`, "s"));
    for (const option of ["--model", "--device"]) assert.ok(help.stdout.includes(option), option);
  }
});

test("with --json, an error is JSON as well", async () => {
  const { status, stderr } = await run(["search", "x", "no-such-folder", "--json"]);
  assert.equal(status, 1);
  assert.equal(JSON.parse(stderr).error.code, "ENOTDIR");
});

test("an empty folder is indexed, and nothing is found in it", async () => {
  const dir = folderWith();
  assert.equal((await run(["index", dir, MODEL])).status, 0);
  const { status, stdout, stderr } = await run(["search", "x", dir, MODEL]);
  assert.deepEqual([status, stdout, stderr], [0, "", "nothing was found\n"]);
});

test("search needs no index, and finds what has changed since", async () => {
  const dir = folderWith({ "a.js": "function parseDate(text) {\n  return new Date(text);\n}\n" });
  const first = await run(["search", "parse a date", dir, MODEL]);
  assert.equal(first.status, 0, first.stderr);
  assert.ok(
    first.stdout.startsWith(`${path.join(dir, "a.js")}:1  parseDate\n     1  function parseDate`),
    first.stdout,
  );
  write(dir, "b.js", "function formatMoney(amount) {\n  return amount.toFixed(2);\n}\n");
  const second = await run(["search", "formatMoney", ".", MODEL, "--limit=1"], { cwd: dir });
  assert.match(second.stdout, /^b\.js:1 {2}formatMoney\n/);
  const [file] = second.stdout.split(" ");
  const alike = await run(["similar", file, MODEL], { cwd: dir });
  assert.equal(alike.status, 0, alike.stderr);
  assert.match(alike.stdout, /\.js:1 {2}\w+\n/);
});

test("search says how much is exact, until index has computed it all", async () => {
  const dir = folderWith();
  for (let file = 0; file < 100; file++) write(dir, `f${file}.py`, `def parse_${file}(text):\n    return ${file}\n`);
  const search = () => run(["search", "parse a text", dir, MODEL, "--limit=1"]);
  const { status, stdout, stderr } = await search();
  assert.equal(status, 0, stderr);
  assert.match(stdout, /\.py:1 {2}parse_\d+\n/);
  const [, exact] = /^(\d+) of 100 chunks exact; `index` computes the rest\n$/.exec(stderr) ?? assert.fail(stderr);
  assert.ok(Number(exact) < 100);
  const { stdout: summary } = await run(["index", dir, MODEL]);
  assert.match(summary, new RegExp(`^100 files, 100 chunks: 0 files read, 0 removed, ${100 - exact} chunks embedded`));
  assert.equal((await search()).stderr, "");
});

test("a reranker orders what was found", async () => {
  const texts = ["parse a date", "format money", "open a file", "send a mail"];
  const dir = folderWith(Object.fromEntries(texts.map((text, index) => [`f${index}.txt`, `${text}\n`])));
  const reranker = path.join(REPOSITORY, "tests/fixtures/rerankers/bert");
  const search = async (...args) => {
    const { status, stdout, stderr } = await run(["search", "file a date", dir, MODEL, "--json", ...args]);
    assert.equal(status, 0, stderr);
    return JSON.parse(stdout).hits;
  };
  await run(["index", dir, MODEL]);
  const [plain, reranked] = [await search(), await search(`--reranker=${reranker}`)];
  const paths = (hits) => hits.map((hit) => hit.path);
  assert.deepEqual(paths(reranked).sort(), paths(plain).sort());
  const model = await Reranker.load(reranker, { backend: "onnx" });
  const scores = await model.rank(
    "file a date",
    texts.map((text, index) => embeddedText(`f${index}.txt`, { name: "", text })),
  );
  await model.close();
  assert.deepEqual(
    paths(reranked),
    scores.map(({ index }) => `f${index}.txt`),
  );
  const { status, stderr } = await run(["search", "x", dir, MODEL, "--reranker=./no-such-reranker"]);
  assert.equal(status, 1);
  assert.match(stderr, /^error \[MODEL_NOT_FOUND\]: .*no-such-reranker/);
});

test("an index that another process is at work on is searched as it is", async () => {
  const dir = folderWith({ "a.js": "function first() {}\n" });
  await run(["index", dir, MODEL]);
  write(dir, "b.js", "function second() {}\n");
  const lock = await lockIndex(dir);
  try {
    const { status, stdout, stderr } = await run(["search", "second", dir, MODEL, "--json"]);
    assert.equal(status, 0, stderr);
    assert.equal(stderr, "another process is indexing the folder: results are of what it has read so far\n");
    assert.deepEqual(
      JSON.parse(stdout).hits.map(({ name }) => name),
      ["first"],
    );
  } finally {
    lock.release();
  }
  const { stdout } = await run(["search", "second", dir, MODEL, "--limit=1"]);
  assert.match(stdout, /b\.js:1 {2}second/);
});

test("a damaged index is named, with what to do", async () => {
  const dir = folderWith({ ".code-search/search.db": "this is no database ".repeat(100) });
  for (const args of [
    ["index", dir],
    ["search", "x", dir],
  ]) {
    const { status, stderr } = await run([...args, MODEL]);
    assert.equal(status, 1);
    assert.match(stderr, /search\.db: file is not a database \(if it is damaged, remove it and index again\)\n$/);
  }
});

test("--json is for tools", async () => {
  const dir = folderWith({ "sub/a.js": "\n// Adds up.\nfunction add(a, b) {\n  return a + b;\n}\n" });
  const { seconds, ...summary } = JSON.parse((await run(["index", dir, MODEL, "--json"])).stdout);
  assert.ok(seconds > 0);
  assert.deepEqual([summary.files, summary.chunks, summary.exact, summary.changed, summary.removed], [1, 1, 1, 1, 0]);
  const { stdout, stderr } = await run(["search", "add", dir, "--json", MODEL]);
  assert.equal(stderr, "");
  const { hits, exact } = JSON.parse(stdout);
  assert.deepEqual(exact, { chunks: 1, of: 1 });
  const [{ similarity, score, ...hit }] = hits;
  assert.ok(similarity >= -1 && similarity <= 1);
  assert.ok(score > 0);
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
    isExact: true,
  });
});

test("Ctrl-C leaves an index that the next run completes", { skip: process.platform === "win32" }, async () => {
  const dir = folderWith();
  for (let file = 0; file < 400; file++) write(dir, `f${file}.py`, `def a${file}():\n    pass\n`.repeat(20));
  const interrupt = (child) => {
    const watching = setInterval(() => {
      if (countsOf(dir).exact === 0) return;
      clearInterval(watching);
      child.kill("SIGINT");
    }, 2);
  };
  const { status, stderr } = await run(["index", dir, MODEL], { started: interrupt });
  assert.equal(status, 130, stderr);
  assert.match(stderr, /interrupted by SIGINT: \d+ files are in the index, \d+ of \d+ chunks exact/);
  const done = await run(["index", dir, MODEL]);
  assert.match(done.stdout, /^400 files, /);
  const { counts } = contentsOf(dir);
  assert.equal(new Set(Object.values(counts)).size, 1);
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
  const found = await run(["search", "clear", ".", MODEL], { cwd: dir });
  const json = await run(["search", "clear", dir, "--json", MODEL]);
  const refused = await run(["search", "clear", `${dir}/${name}/\u001b[2J`, MODEL]);
  for (const text of [found.stdout, json.stdout, refused.stderr]) {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not come out.
    assert.doesNotMatch(text, /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/);
    assert.match(text, /\\u001b/);
  }
  assert.match(found.stdout, /^a\\u001b\[31m\\u009b2J\.js:\d+/);
  assert.doesNotMatch(found.stdout, /\\u000d/);
  assert.equal(JSON.parse(json.stdout).hits[0].path, name);
});
