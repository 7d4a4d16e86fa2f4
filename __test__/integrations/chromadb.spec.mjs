/**
 * ChromaDB: what its client sends to a server. The server that is in the npm package needs glibc 2.39; here is one that
 * keeps the requests of its clients.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, test } from "node:test";
import { ChromaClient } from "chromadb";
import { embeddingFunction } from "semantic-search-native/chromadb";
import { documentVectors, embedderError, loadEmbedder, QUERY, queryVectors, TEXTS } from "./models.mjs";

const embedder = await loadEmbedder();

/** Answers as Chroma does, as far as its client looks at the answers. */
async function startServer() {
  /** Bodies by the last part of their paths. */
  const received = {};
  const answers = {
    "pre-flight-checks": { max_batch_size: 100, supports_base64_encoding: false },
    query: { ids: [], include: [] },
  };
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request) body += part;
    const last = request.url.split("/").at(-1);
    if (request.method === "POST") received[last] = JSON.parse(body);
    const { name, configuration } = received.collections ?? {};
    const collection = { id: "0", name, configuration_json: configuration };
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify(answers[last] ?? collection));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  after(() => server.close());
  return { received, client: new ChromaClient({ host: "127.0.0.1", port: server.address().port }) };
}

test("a collection gets the vectors of documents, and is searched with those of queries", async () => {
  const { client, received } = await startServer();
  const made = await client.createCollection({ name: "texts", embeddingFunction: embeddingFunction(embedder) });
  assert.equal(received.collections.configuration.hnsw.space, "cosine");
  const ids = TEXTS.map((_, index) => `${index}`);
  await made.add({ ids, documents: TEXTS });
  assert.deepEqual(received.add.embeddings, await documentVectors(embedder, TEXTS));
  const again = await client.getCollection({ name: "texts", embeddingFunction: embeddingFunction(embedder) });
  await again.query({ queryTexts: [QUERY, TEXTS[0]] });
  assert.deepEqual(received.query.query_embeddings, await queryVectors(embedder, [QUERY, TEXTS[0]]));
  assert.notDeepEqual(received.query.query_embeddings, await documentVectors(embedder, [QUERY, TEXTS[0]]));
});

test("other spaces are possible", async () => {
  const { client, received } = await startServer();
  const configuration = { hnsw: { space: "ip" } };
  await client.createCollection({ name: "texts", embeddingFunction: embeddingFunction(embedder), configuration });
  assert.equal(received.collections.configuration.hnsw.space, "ip");
});

test("errors are ours", async () => {
  const { client } = await startServer();
  const closed = await loadEmbedder();
  const collection = await client.createCollection({ name: "texts", embeddingFunction: embeddingFunction(closed) });
  await closed.close();
  await assert.rejects(collection.add({ ids: ["0"], documents: ["a"] }), embedderError("CLOSED"));
});
