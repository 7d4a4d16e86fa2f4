/** The command `rerank`. */

import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { run } from "./support/command_line.mjs";
import { api, assertClose, model, temporaryFolder } from "./support/models.mjs";

const QUERY = "where is a number read from a string?";
const TEXTS = ["def parse(value): return int(value)", "", "日本語 🚀", "where are tokens validated?", "the time"];
const reranker = () => model("rerankers/bert");

async function ranked(texts, options) {
  const loaded = await api.Reranker.load(await reranker());
  const result = await loaded.rank(QUERY, texts, options);
  await loaded.close();
  return result;
}

const parsed = (output) =>
  output
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));

function assertRanked(records, expected) {
  assert.deepEqual(
    records.map(({ index }) => index),
    expected.map(({ index }) => index),
  );
  const scores = (list) => Float32Array.from(list, ({ score }) => score);
  assertClose(scores(records), scores(expected), 0, "scores");
}

test("rerank: lines become JSON lines, best first", async () => {
  const folder = await reranker();
  const { status, stdout, stderr } = await run(["rerank", folder, "-q", QUERY], TEXTS.join("\n"));
  assert.equal(status, 0, stderr);
  assertRanked(parsed(stdout), await ranked(TEXTS));
  for (const { index, line } of parsed(stdout)) assert.equal(line, index + 1);
  assert.match(stderr, /^5 texts in /);
  const args = ["rerank", folder, `--query=${QUERY}`, "--top-k=2", "--activation=sigmoid", "--quiet"];
  const best = await run(args, TEXTS.join("\n"));
  assertRanked(parsed(best.stdout), await ranked(TEXTS, { topK: 2, activation: "sigmoid" }));
  assert.equal(best.stderr, "");
  assert.deepEqual(await run(["rerank", folder, "-q", "a", "--quiet"]), {
    status: 0,
    signal: null,
    stdout: "",
    stderr: "",
  });
});

test("rerank: files of JSON lines, ids, lines without a text, truncation, an output file", async () => {
  const cwd = temporaryFolder();
  writeFileSync(path.join(cwd, "a.jsonl"), `{"id":"x","code":"${"time ".repeat(100)}"}\nnot JSON\n`);
  writeFileSync(path.join(cwd, "b.jsonl"), '{"id":7,"code":"the time"}\n{"text":"no code"}\n');
  const args = ["rerank", await reranker(), "a.jsonl", "b.jsonl", "-i", "jsonl", "-f", "code", "-q", QUERY, "--json"];
  const { status, stdout, stderr } = await run([...args, "-o", "out.jsonl"], "", { cwd });
  assert.equal(status, 1, stderr);
  const records = parsed(readFileSync(path.join(cwd, "out.jsonl"), "utf8"));
  assertRanked(records, await ranked(["time ".repeat(100), "the time"]));
  const origins = records.map(({ score: _, ...origin }) => origin).sort((a, b) => a.index - b.index);
  assert.deepEqual(origins, [
    { index: 0, file: "a.jsonl", line: 1, id: "x", truncated: true },
    { index: 1, file: "b.jsonl", line: 1, id: 7 },
  ]);
  const { texts, badLines, truncatedTexts, activation, output } = JSON.parse(stdout);
  assert.deepEqual([texts, badLines, truncatedTexts, activation, output], [2, 2, 1, "none", "out.jsonl"]);
  assert.deepEqual(
    parsed(stderr).map(({ badLine, error }) => badLine?.line ?? error.code),
    [2, 2, "BAD_LINES"],
  );
});

test("rerank: wrong usage and failures leave no output file", async () => {
  const folder = await reranker();
  const cwd = temporaryFolder();
  for (const [args, code, named] of [
    [["rerank", folder], 2, "--query"],
    [["rerank", folder, "-q", "a", "--top-k=0"], 2, "whole number"],
    [["rerank", folder, "-q", "a", "--activation=softmax"], 2, "sigmoid"],
    [["rerank", folder, "-q", "a", "--pooling=cls"], 2, "--pooling"],
    [["rerank", await model("bert_mean"), "-q", "a"], 1, "Embedder.load"],
    [["rerank", folder, "nowhere", "-q", "a"], 1, "nowhere"],
    [["rerank", folder, "-q", "time ".repeat(70), "-o", "out.jsonl"], 2, "query"],
    [["embed", folder], 1, "Reranker.load"],
  ]) {
    const { status, stderr } = await run(args, "a text\n", { cwd });
    assert.equal(status, code, stderr);
    assert.ok(stderr.includes(named), stderr);
  }
  assert.ok(!existsSync(path.join(cwd, "out.jsonl")));
});
