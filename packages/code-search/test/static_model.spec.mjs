/** Static models: made from a transformer, kept, found again, and of the same opinion about words. */

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { Embedder } from "semantic-search-native";
import { findStaticModel, makeStaticModel, specialTokensOf } from "../lib/static_model.mjs";
import { folderWith, STARTER_MODEL, TINY_MODEL, WITHOUT_STARTER_MODEL } from "./folders.mjs";

/** Two of a kind, and one of another. */
const TRIPLES = [
  ["delete the user", "remove an account", "parse a date"],
  ["open a socket", "connect to the network", "sort a list"],
  ["throw an exception", "report an error", "render the image"],
  ["copy a folder", "duplicate the directory", "multiply two numbers"],
];

const cosine = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);

test("a static model of the starter model", { skip: WITHOUT_STARTER_MODEL }, async () => {
  process.env.SEMANTIC_SEARCH_CACHE = folderWith();
  const embedder = await Embedder.load(STARTER_MODEL, { backend: "onnx" });
  assert.equal(await findStaticModel(embedder), undefined);
  const made = await makeStaticModel(embedder, STARTER_MODEL);
  const found = await findStaticModel(embedder);
  assert.equal(found?.fingerprint, made?.fingerprint);
  assert.equal(made?.dimension, 256);
  const [texts] = [TRIPLES.flat()];
  const vectors = await found.embed(texts);
  assert.deepEqual(await made.embed(texts), vectors);
  for (const [index, [one, alike, other]] of TRIPLES.entries()) {
    const [a, b, c] = vectors.slice(3 * index);
    assert.ok(cosine(a, b) > cosine(a, c), `${one}: ${alike} ${cosine(a, b)}, ${other} ${cosine(a, c)}`);
  }
  const folder = path.join(process.env.SEMANTIC_SEARCH_CACHE, "static");
  assert.equal(readdirSync(folder).length, 1, "nothing unfinished is left");
  await Promise.all([embedder.close(), made.close(), found.close()]);
});

test("an aborted one leaves nothing", { skip: WITHOUT_STARTER_MODEL }, async () => {
  process.env.SEMANTIC_SEARCH_CACHE = folderWith();
  const embedder = await Embedder.load(STARTER_MODEL, { backend: "onnx" });
  const signal = AbortSignal.timeout(300);
  await assert.rejects(makeStaticModel(embedder, STARTER_MODEL, { signal }));
  assert.deepEqual(readdirSync(process.env.SEMANTIC_SEARCH_CACHE), []);
  await embedder.close();
});

test("a model whose vectors are short already has none", async () => {
  const embedder = await Embedder.load(TINY_MODEL, { backend: "onnx" });
  assert.equal(await makeStaticModel(embedder, TINY_MODEL), undefined);
  await embedder.close();
});

test("special tokens of each kind of tokenizer", () => {
  const template = {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: "<s>" } }, { Sequence: { id: "A" } }, { SpecialToken: { id: "</s>" } }],
    special_tokens: { "<s>": { ids: [5] }, "</s>": { ids: [6, 7] } },
  };
  const bert = { type: "BertProcessing", sep: ["[SEP]", 102], cls: ["[CLS]", 101] };
  for (const [processor, expected] of [
    [template, { before: [5], behind: [6, 7] }],
    [
      { type: "Sequence", processors: [{ type: "ByteLevel" }, template] },
      { before: [5], behind: [6, 7] },
    ],
    [bert, { before: [101], behind: [102] }],
    [
      { ...bert, type: "RobertaProcessing" },
      { before: [101], behind: [102] },
    ],
    [{ type: "ByteLevel" }, { before: [], behind: [] }],
    [null, { before: [], behind: [] }],
  ]) {
    assert.deepEqual(specialTokensOf({ post_processor: processor }), expected);
  }
});
