/** LanceDB: tables on disk, filled and searched by text. */

import assert from "node:assert/strict";
import { test } from "node:test";
import * as lancedb from "@lancedb/lancedb";
import { registerEmbedder } from "semantic-search-native/lancedb";
import {
  assertClose,
  documentVectors,
  embedderError,
  loadEmbedder,
  nearest,
  QUERY,
  TEXTS,
  temporaryFolder,
} from "./models.mjs";

const { getRegistry, LanceSchema } = lancedb.embedding;
const ROWS = TEXTS.map((text) => ({ text }));
const embedder = await loadEmbedder();

/** A table of the texts in a folder, and the folder. */
async function createTable(embedFunction) {
  const folder = temporaryFolder();
  const database = await lancedb.connect(folder);
  const schema = LanceSchema({ text: embedFunction.sourceField(), vector: embedFunction.vectorField() });
  return { folder, table: await database.createTable("texts", ROWS, { schema }) };
}

async function assertFound(table, texts) {
  const found = await table.search(QUERY).limit(texts.length).toArray();
  const expected = await nearest(embedder, texts, QUERY);
  assert.deepEqual(
    found.map(({ text }) => text),
    expected.map(({ text }) => text),
  );
  // The default is the square of the Euclidean distance, of unit vectors.
  const cosines = found.map(({ _distance }) => 1 - _distance / 2);
  assertClose(
    cosines,
    expected.map(({ cosine }) => cosine),
    1e-5,
    "cosines",
  );
}

test("a table holds the vectors of documents, and is searched with those of queries", async () => {
  getRegistry().reset();
  const { table } = await createTable(registerEmbedder(lancedb.embedding, embedder));
  const rows = await table.query().toArray();
  const vectors = await documentVectors(embedder, TEXTS);
  for (const [index, { text, vector }] of rows.entries()) {
    assert.equal(text, TEXTS[index]);
    assert.deepEqual([...vector], vectors[index]);
  }
  await assertFound(table, TEXTS);
  await table.add([{ text: QUERY }]);
  await assertFound(table, [...TEXTS, QUERY]);
});

test("createTable takes the function without a schema", async () => {
  getRegistry().reset();
  const embedFunction = registerEmbedder(lancedb.embedding, embedder);
  const database = await lancedb.connect(temporaryFolder());
  const table = await database.createTable("texts", ROWS, {
    embeddingFunction: { sourceColumn: "text", function: embedFunction },
  });
  await assertFound(table, TEXTS);
});

test("a table that is opened again finds its function, and refuses another model's", async () => {
  getRegistry().reset();
  const { folder } = await createTable(registerEmbedder(lancedb.embedding, embedder, "code"));
  const open = async () => (await lancedb.connect(folder)).openTable("texts");
  getRegistry().reset();
  registerEmbedder(lancedb.embedding, await loadEmbedder(), "code");
  await assertFound(await open(), TEXTS);

  const other = await loadEmbedder({ maxTokens: 16 });
  getRegistry().reset();
  registerEmbedder(lancedb.embedding, other, "code");
  const table = await open();
  const refusal = embedderError("INVALID_ARGUMENT", embedder.fingerprint, other.fingerprint);
  await assert.rejects(table.search(QUERY).toArray(), refusal);
  await assert.rejects(table.add([{ text: QUERY }]), refusal);
});

test("the registry has one function of a name, and errors are ours", async () => {
  getRegistry().reset();
  const embedFunction = registerEmbedder(lancedb.embedding, embedder);
  assert.throws(() => registerEmbedder(lancedb.embedding, embedder), /semantic-search-native/);
  assert.equal((await getRegistry().get("semantic-search-native").create()).ndims(), embedder.dimension);
  await assert.rejects(embedFunction.computeSourceEmbeddings([7]), embedderError("INVALID_ARGUMENT", "texts[0]"));
});
