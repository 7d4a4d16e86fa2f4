/** `POST /api/embed` of `serve`, with Ollama's own client. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Ollama } from "ollama";
import { start } from "../support/command_line.mjs";
import { model as folderOf, withEmbedder } from "../support/models.mjs";
import { until } from "../support/processes.mjs";
import { assertClose, documentVectors, LONG_TEXT, loadEmbedder, queryVectors, TEXTS } from "./models.mjs";

const MODEL = "nomic_mean_dynamic";
const embedder = await loadEmbedder();

async function serve(t, name = MODEL, args = [], env = {}) {
  const server = start(["serve", await folderOf(name), "--port=0", ...args], { env });
  t.after(async () => {
    server.child.kill("SIGKILL");
    await server.ended;
  });
  const [, host] = await server.says(/^(http:\S+)\n/);
  const client = new Ollama({ host });
  const post = (body, headers = { "content-type": "application/json" }) =>
    fetch(`${host}/api/embed`, {
      method: "POST",
      headers,
      body: typeof body === "string" ? body : JSON.stringify(body),
    });
  return { ...server, host, client, post };
}

/** Matches an error of the client with this status whose message has all the parts. */
function responseError(status, ...parts) {
  return (error) => {
    assert.deepEqual([error.name, error.status_code], ["ResponseError", status], error.message);
    for (const part of parts) assert.ok(error.message.includes(part), `${part} in ${error.message}`);
    return true;
  };
}

function assertVectors(actual, expected) {
  assert.equal(actual.length, expected.length);
  for (const [index, vector] of expected.entries()) assertClose(actual[index], vector, 1e-6, index);
}

test("vectors of documents and queries, with what they took", async (t) => {
  const { client } = await serve(t);
  let tokens;
  const onProgress = (progress) => {
    tokens = progress.tokens;
  };
  await embedder.embed(TEXTS, { onProgress });
  const before = performance.now();
  const { embeddings, ...rest } = await client.embed({ model: MODEL, input: TEXTS });
  const nanoseconds = (performance.now() - before) * 1e6;
  assertVectors(embeddings, await documentVectors(embedder, TEXTS));
  const { total_duration, ...others } = rest;
  assert.deepEqual(others, { model: MODEL, load_duration: 0, prompt_eval_count: tokens });
  assert.ok(Number.isInteger(total_duration) && total_duration > 0 && total_duration < nanoseconds, total_duration);

  const queries = await client.embed({ model: `${MODEL}:query`, input: TEXTS[0], keep_alive: "5m", options: {} });
  assert.equal(queries.model, `${MODEL}:query`);
  assertVectors(queries.embeddings, await queryVectors(embedder, [TEXTS[0]]));
  const many = Array.from({ length: 100 }, (_, index) => `text ${index}`);
  const answer = await client.embed({ model: MODEL, input: many });
  assertVectors(answer.embeddings, await documentVectors(embedder, many));
});

test("dimensions equal those of Embedder.load", async (t) => {
  const { client } = await serve(t, "bert_mean", ["--matryoshka"]);
  const { embeddings } = await client.embed({ model: "bert_mean", input: TEXTS, dimensions: 12 });
  await withEmbedder(await folderOf("bert_mean"), { dimensions: 12 }, async (short) => {
    for (const [index, vector] of (await short.embed(TEXTS)).entries()) {
      assertClose(embeddings[index], vector, 1e-5, index);
    }
  });
});

test("truncation is reported in a header, and refused on request", async (t) => {
  const { client, post } = await serve(t);
  const input = ["short", LONG_TEXT];
  for (const truncate of [undefined, null, true]) {
    const response = await post({ model: MODEL, input, truncate });
    assert.deepEqual([response.status, response.headers.get("x-truncated-inputs")], [200, "1"]);
  }
  const refused = responseError(400, "input[1]", `${embedder.maxTokens} tokens`);
  await assert.rejects(client.embed({ model: MODEL, input, truncate: false }), refused);
  assert.equal((await client.embed({ model: MODEL, input: "short", truncate: false })).embeddings.length, 1);
});

test("what is wrong with a request is named, as a text", async (t) => {
  const { client, host, post, output } = await serve(t, MODEL, ["--max-batch=3", "--max-body=2000"]);
  const embed = (body) => client.embed({ model: MODEL, input: "a", ...body });
  for (const [body, status, ...parts] of [
    [{ model: "llama" }, 404, '"llama"', `"${MODEL}"`, `"${MODEL}:query"`],
    [{ model: `${MODEL}:latest` }, 404, ":latest"],
    [{ model: 7 }, 400, "model", "found 7"],
    [{ input: [] }, 400, "input", "at least one text"],
    [{ input: 7 }, 400, "input", "found 7"],
    [{ input: null }, 400, "input", "found null"],
    [{ input: ["a", 7] }, 400, "input[1]", "found 7"],
    [{ input: [[1, 2]] }, 400, "input[0]", "a string"],
    [{ input: ["a", "b", "c", "d"] }, 413, "--max-batch"],
    [{ input: "a".repeat(3000) }, 413, "--max-body"],
    [{ dimensions: 8 }, 400, "dimensions", "--matryoshka"],
    [{ dimensions: 0 }, 400, "dimensions", "from 1 to 32"],
    [{ truncate: "no" }, 400, "truncate", "true or false"],
    [{ input_type: "query" }, 400, "input_type", "unknown field"],
    [{ constructor: {} }, 400, "constructor", "unknown field"],
  ]) {
    await assert.rejects(embed(body), responseError(status, ...parts), JSON.stringify(body));
  }
  for (const [response, status, part] of [
    [await post("{"), 400, "not JSON"],
    [await post("[]"), 400, "JSON object"],
    [await post({ model: MODEL, input: "a" }, { "content-type": "text/plain" }), 415, "application/json"],
    [await fetch(`${host}/api/embed`), 405, "POST"],
    [await fetch(`${host}/api/tags`), 404, "/api/embed"],
    [await fetch(`${host}/api/embed`, { headers: { origin: "https://evil.example" } }), 403, "evil.example"],
  ]) {
    const { error } = await response.json();
    assert.equal(response.status, status, error);
    assert.ok(error.includes(part), `${part} in ${error}`);
  }
  assert.equal((await embed({ dimensions: embedder.dimension })).embeddings.length, 1);
  assert.equal(output.stderr.split("\n").length, 2, output.stderr);
});

test("an API key is required", async (t) => {
  const { client, host } = await serve(t, MODEL, [], { SEMANTIC_SEARCH_API_KEY: "secret" });
  await assert.rejects(client.embed({ model: MODEL, input: "a" }), responseError(401, "API key"));
  const known = new Ollama({ host, headers: { authorization: "Bearer secret" } });
  assert.equal((await known.embed({ model: MODEL, input: "a" })).embeddings.length, 1);
});

test("too many requests are told to retry, and clients that leave end their calls", async (t) => {
  const { host, post } = await serve(t, MODEL, ["--max-requests=1", "--threads=1"]);
  const leaving = new AbortController();
  const { signal } = leaving;
  const client = new Ollama({ host, fetch: (url, init) => fetch(url, { ...init, signal }) });
  const input = Array.from({ length: 2048 }, (_, index) => `${index}${" word".repeat(60)}`);
  const metric = async (name) => {
    const page = await (await fetch(`${host}/metrics`)).text();
    return page.split("\n").find((line) => line.startsWith(name));
  };
  const left = assert.rejects(client.embed({ model: MODEL, input }), { name: "AbortError" });
  await until(async () => (await metric("semantic_search_calls_in_progress")).endsWith(" 1"), "the call");
  const refused = await post({ model: MODEL, input: "a" });
  assert.deepEqual([refused.status, refused.headers.get("retry-after")], [429, "1"]);
  assert.match((await refused.json()).error, /try again later/);
  leaving.abort();
  await left;
  const aborted = 'semantic_search_requests_total{route="/api/embed",status="aborted"} 1';
  await until(async () => (await metric(aborted)) !== undefined, "the call's end");
  assert.equal((await post({ model: MODEL, input: "a" })).status, 200);
});

test("a reranker's server has no /api/embed", async (t) => {
  const { client } = await serve(t, "rerankers/bert");
  await assert.rejects(client.embed({ model: "bert", input: "a" }), responseError(404, "/rerank"));
});
