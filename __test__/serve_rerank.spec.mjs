/** `serve` with a reranker: the requests and answers of text-embeddings-inference, Cohere and Jina. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { run, start } from "./support/command_line.mjs";
import { api, assertClose, model } from "./support/models.mjs";

const QUERY = "where is a number read from a string?";
const TEXTS = ["def parse(value): return int(value)", "", "日本語 🚀", "where are tokens validated?"];

async function serve(t, name = "bert", args = []) {
  const server = start(["serve", await model(`rerankers/${name}`), "--port=0", ...args]);
  t.after(async () => {
    server.child.kill("SIGKILL");
    await server.ended;
  });
  const [, url] = await server.says(/^(http:\S+)\n/);
  const post = async (path, body) => {
    const headers = { "content-type": "application/json" };
    const response = await fetch(`${url}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
    return { status: response.status, headers: response.headers, body: await response.json() };
  };
  return { ...server, url, post };
}

/** What `Reranker.rank` gives, and the tokens that it computes. */
async function expectedRanks(name, activation, options) {
  const reranker = await api.Reranker.load(await model(`rerankers/${name}`), options);
  let tokens = 0;
  const onProgress = (progress) => {
    tokens = progress.tokens;
  };
  const ranked = await reranker.rank(QUERY, TEXTS, { activation, onProgress });
  await reranker.close();
  return { ranked, tokens };
}

function assertRanked(actual, expected) {
  assert.deepEqual(
    actual.map(({ index }) => index),
    expected.map(({ index }) => index),
  );
  const scores = (list) => Float32Array.from(list, ({ score, relevance_score }) => score ?? relevance_score);
  assertClose(scores(actual), scores(expected), 1e-6, "scores");
}

test("text-embeddings-inference's shape: an array, scores between 0 and 1 unless they are raw", async (t) => {
  const { post } = await serve(t);
  for (const raw_scores of [undefined, false, true]) {
    const { ranked } = await expectedRanks("bert", raw_scores ? "none" : "sigmoid");
    const { status, body } = await post("/rerank", { query: QUERY, texts: TEXTS, raw_scores });
    assert.equal(status, 200);
    assertRanked(body, ranked);
    for (const result of body) assert.deepEqual(Object.keys(result), ["index", "score"]);
  }
  const { body } = await post("/rerank", { query: QUERY, texts: TEXTS, return_text: true, truncate: true });
  assert.deepEqual(
    body.map(({ text }) => text),
    body.map(({ index }) => TEXTS[index]),
  );
});

test("Cohere's and Jina's shape: an object with results, on the paths that their clients use", async (t) => {
  const { post, url } = await serve(t, "xlm_roberta");
  const { ranked, tokens } = await expectedRanks("xlm_roberta", "sigmoid");
  for (const path of ["/rerank", "/v1/rerank", "/v2/rerank"]) {
    const { status, body } = await post(path, { model: "xlm_roberta", query: QUERY, documents: TEXTS });
    assert.equal(status, 200);
    const { results, ...rest } = body;
    assertRanked(results, ranked);
    const usage = { prompt_tokens: tokens, total_tokens: tokens };
    assert.deepEqual(rest, { object: "list", model: "xlm_roberta", usage });
    for (const result of results) assert.deepEqual(Object.keys(result), ["index", "relevance_score"]);
  }
  const request = { query: QUERY, documents: TEXTS.map((text) => ({ text })), top_n: 2, return_documents: true };
  const { body } = await post("/v1/rerank", request);
  assertRanked(body.results, ranked.slice(0, 2));
  assert.deepEqual(
    body.results.map(({ document }) => document),
    ranked.slice(0, 2).map(({ index }) => ({ text: TEXTS[index] })),
  );

  const health = await (await fetch(`${url}/health`)).json();
  assert.deepEqual([health.status, health.model, health.activation], ["ok", "xlm_roberta", "sigmoid"]);
  assert.equal(health.dimension, undefined);
  const { data } = await (await fetch(`${url}/v1/models`)).json();
  assert.deepEqual(
    data.map(({ id }) => id),
    ["xlm_roberta"],
  );
  const page = await (await fetch(`${url}/metrics`)).text();
  assert.match(page, /semantic_search_texts_total [1-9]/);
  assert.match(page, /semantic_search_requests_total\{route="\/v1\/rerank",status="200"\} 2\n/);
});

test("truncation is reported, or refused", async (t) => {
  const { post } = await serve(t);
  const texts = ["time", "time ".repeat(100)];
  const { status, headers } = await post("/rerank", { query: QUERY, texts });
  assert.deepEqual([status, headers.get("x-truncated-inputs")], [200, "1"]);
  for (const field of ["truncate", "truncation"]) {
    const { status, body } = await post("/rerank", { query: QUERY, texts, [field]: false });
    assert.deepEqual([status, body.error.code, body.error.param], [400, "context_length_exceeded", "texts"]);
    assert.match(body.error.message, /^texts\[1\] .*64 tokens/);
  }
  const { body } = await post("/rerank", { query: "time ".repeat(70), documents: ["a"] });
  assert.deepEqual([body.error.code, body.error.param], ["context_length_exceeded", "query"]);
});

test("what is wrong with a request is named", async (t) => {
  const { post, url } = await serve(t, "bert", ["--max-batch=3"]);
  for (const [request, status, code, param] of [
    [[], 400, "invalid_value", null],
    [{ texts: ["a"] }, 400, "invalid_value", "query"],
    [{ query: 1, texts: ["a"] }, 400, "invalid_value", "query"],
    [{ query: "a" }, 400, "invalid_value", "texts"],
    [{ query: "a", texts: [] }, 400, "invalid_value", "texts"],
    [{ query: "a", documents: "a" }, 400, "invalid_value", "documents"],
    [{ query: "a", documents: ["a", 1] }, 400, "invalid_value", "documents"],
    [{ query: "a", documents: [{ title: "a" }] }, 400, "invalid_value", "documents"],
    [{ query: "a", documents: ["a"], texts: ["a"] }, 400, "invalid_value", "texts"],
    [{ query: "a", documents: ["a"], top_n: 0 }, 400, "invalid_value", "top_n"],
    [{ query: "a", documents: ["a"], raw_scores: "no" }, 400, "invalid_value", "raw_scores"],
    [{ query: "a", documents: ["a"], model: "other" }, 404, "model_not_found", "model"],
    [{ query: "a", documents: ["a"], max_tokens_per_doc: 9 }, 400, "unknown_parameter", "max_tokens_per_doc"],
    [{ query: "a", texts: ["a", "b", "c", "d"] }, 413, "batch_too_large", "texts"],
  ]) {
    const answer = await post("/rerank", request);
    const { error } = answer.body;
    assert.deepEqual([answer.status, error.code, error.param], [status, code, param], JSON.stringify(request));
  }
  const { status, body } = await post("/v1/embeddings", { model: "bert", input: "a" });
  assert.equal(status, 404);
  assert.match(body.error.message, /\/rerank/);
  assert.equal((await fetch(`${url}/rerank`)).status, 405);
});

test("an embedder's server has no /rerank, and flags about vectors are refused for a reranker", async (t) => {
  const server = start(["serve", await model("bert_mean"), "--port=0"]);
  t.after(async () => {
    server.child.kill("SIGKILL");
    await server.ended;
  });
  const [, url] = await server.says(/^(http:\S+)\n/);
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${url}/rerank`, { method: "POST", headers, body: "{}" });
  assert.equal(answer.status, 404);
  for (const [flag, named] of [
    ["--pooling=cls", "pooling"],
    ["--no-normalize", "normalize"],
    ["--matryoshka", "--matryoshka"],
  ]) {
    const { status, stderr } = await run(["serve", await model("rerankers/bert"), "--port=0", flag]);
    assert.equal(status, 2, stderr);
    assert.ok(stderr.includes(named), stderr);
  }
});
