/** `serve`: with OpenAI's own client, and with clients that misbehave. */

import assert from "node:assert/strict";
import { once } from "node:events";
import * as http from "node:http";
import * as net from "node:net";
import { test } from "node:test";
import OpenAI from "openai";
import { start, until } from "./command_line.mjs";
import { assertClose, model, withEmbedder } from "./models.mjs";

const POSIX = { skip: process.platform === "win32" ? "signals end a process there" : false };
const TEXTS = ["def parse(value): return int(value)", "", "日本語 🚀", "where are tokens validated?"];
/** Some seconds of work for one thread. */
const MUCH = Array.from({ length: 2048 }, (_, index) => `${index}${" word".repeat(60)}`);

/** A server on a free port, and a client of it that does not try again. */
async function serve(t, name = "bert_mean", args = [], env = {}) {
  const server = start(["serve", await model(name), "--port=0", ...args], { env });
  t.after(async () => {
    server.child.kill("SIGKILL");
    await server.ended;
  });
  const url = await until(async () => {
    if (server.child.exitCode !== null) throw new Error(server.output.stderr);
    return /^http:\S+\n/.exec(server.output.stdout)?.[0].trim();
  }, "the server's address");
  const apiKey = env.SEMANTIC_SEARCH_API_KEY ?? "none";
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });
  const metric = async (name) => {
    const page = await (await fetch(`${url}/metrics`)).text();
    const line = page.split("\n").find((one) => one.startsWith(`${name} `) || one.startsWith(`${name}{`));
    return line && Number(line.split(" ").at(-1));
  };
  return { ...server, url, client, metric };
}

const post = (url, body, headers = {}) =>
  fetch(`${url}/v1/embeddings`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" || Buffer.isBuffer(body) ? body : JSON.stringify(body),
  });

/** Asserts an error in OpenAI's shape. */
async function assertRefused(response, status, code, ...parts) {
  const { error, ...rest } = await response.json();
  assert.equal(response.status, status, error.message);
  assert.deepEqual(rest, {});
  assert.deepEqual(Object.keys(error).sort(), ["code", "message", "param", "type"]);
  assert.equal(error.code, code, error.message);
  for (const part of parts) assert.ok(error.message.includes(part), `${part} in ${error.message}`);
  return error;
}

test("OpenAI's client: float, base64 by default, a batch, usage, and the kinds of texts", async (t) => {
  const { client } = await serve(t, "nomic_mean_dynamic");
  const name = "nomic_mean_dynamic";
  await withEmbedder(await model(name), {}, async (embedder) => {
    const count = async (texts, kind) => {
      let counted = 0;
      const onProgress = ({ tokens }) => {
        counted = tokens;
      };
      return { vectors: await embedder.embed(texts, { kind, onProgress }), tokens: counted };
    };
    for (const encoding_format of ["float", "base64", undefined]) {
      const {
        object,
        data,
        model: served,
        usage,
      } = await client.embeddings.create({ model: name, input: TEXTS, encoding_format });
      const { vectors, tokens } = await count(TEXTS, "document");
      assert.deepEqual([object, served], ["list", name]);
      assert.deepEqual(usage, { prompt_tokens: tokens, total_tokens: tokens });
      assert.equal(data.length, TEXTS.length);
      for (const [index, one] of data.entries()) {
        assert.deepEqual([one.object, one.index], ["embedding", index]);
        const embedding = typeof one.embedding === "string" ? decoded(one.embedding) : one.embedding;
        assertClose(embedding, vectors[index], 1e-6, `${encoding_format} ${index}`);
      }
    }
    for (const [input_type, kind] of [
      ["query", "query"],
      ["search_query", "query"],
      ["document", "document"],
      ["passage", "document"],
    ]) {
      // Twice: a query comes from the cache then, with the same count.
      for (let run = 0; run < 2; run++) {
        const { data, usage } = await client.embeddings.create({ model: name, input: TEXTS[3], input_type });
        const { vectors, tokens } = await count([TEXTS[3]], kind);
        assertClose(data[0].embedding, vectors[0], 1e-6, input_type);
        assert.equal(usage.total_tokens, tokens);
      }
    }
  });
  const { data } = await client.models.list();
  assert.deepEqual(
    data.map(({ id, object }) => [id, object]),
    [[name, "model"]],
  );
  assert.equal((await client.models.retrieve(name)).id, name);
});

function decoded(base64) {
  const bytes = Buffer.from(base64, "base64");
  return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readFloatLE(4 * index));
}

test("OpenAI's client: errors come as its own classes", async (t) => {
  const { client } = await serve(t, "bert_mean", ["--max-batch=3"]);
  const create = (body) => client.embeddings.create({ model: "bert_mean", input: "a", ...body });
  await assert.rejects(create({ model: "gpt" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.code, error.param, error.type], ["model_not_found", "model", "invalid_request_error"]);
    return true;
  });
  for (const [body, param, ...parts] of [
    [{ input: [] }, "input", "at least one text"],
    [{ input: [1, 2, 3] }, "input", "arrays of tokens", "LangChain"],
    [{ input: [[1, 2], [3]] }, "input", "arrays of tokens"],
    [{ input: ["a", null] }, "input", "input[1]"],
    [{ input: 7 }, "input", "7"],
    [{ encoding_format: "int8" }, "encoding_format", '"base64"'],
    [{ dimensions: 12 }, "dimensions", "48", "--matryoshka"],
    [{ dimensions: 0 }, "dimensions", "from 1 to 48"],
    [{ dimensions: 49 }, "dimensions", "from 1 to 48"],
    [{ input_type: "code" }, "input_type", '"query"'],
    [{ truncation: "no" }, "truncation", "true or false"],
    [{ inputs: "a" }, "inputs", "unknown field"],
    [{ model: 7 }, "model", '"bert_mean"'],
  ]) {
    await assert.rejects(create(body), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError, `${JSON.stringify(body)}: ${error}`);
      assert.equal(error.param, param);
      for (const part of parts) assert.ok(error.message.includes(part), `${part} in ${error.message}`);
      return true;
    });
  }
  await assert.rejects(create({ input: ["a", "b", "c", "d"] }), { status: 413, code: "batch_too_large" });
  assert.equal((await create({ dimensions: 48, user: "somebody" })).data[0].embedding.length, 48);
});

test("an API key, of which /health is free", async (t) => {
  const { client, url } = await serve(t, "bert_mean", [], { SEMANTIC_SEARCH_API_KEY: "secret" });
  const input = { model: "bert_mean", input: "a" };
  assert.equal((await client.embeddings.create(input)).data.length, 1);
  const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.embeddings.create(input), OpenAI.AuthenticationError);
  await assertRefused(await post(url, input), 401, "invalid_api_key", "Authorization");
  for (const path of ["/metrics", "/v1/models"]) assert.equal((await fetch(url + path)).status, 401);
  assert.equal((await fetch(`${url}/health`)).status, 200);
});

test("requests that are wrong: each with its status and code, and the server lives on", async (t) => {
  const { url, output } = await serve(t, "bert_mean", ["--max-body=2000"]);
  const json = { "content-type": "application/json" };
  const input = { model: "bert_mean", input: "a" };
  await assertRefused(await fetch(`${url}/v1/nothing`), 404, null, "/v1/embeddings");
  await assertRefused(await fetch(`${url}/v1/embeddings`), 405, "method_not_allowed", "POST");
  const preflight = await fetch(`${url}/v1/embeddings`, {
    method: "OPTIONS",
    headers: { origin: "https://evil.example" },
  });
  assert.deepEqual([preflight.status, preflight.headers.get("allow")], [405, "POST"]);
  assert.equal(preflight.headers.get("access-control-allow-origin"), null);
  await assertRefused(await post(url, input, { "content-type": "text/plain" }), 415, "unsupported_media_type");
  await assertRefused(await post(url, input, { "content-encoding": "gzip" }), 415, "unsupported_media_type");
  for (const body of ["{", "", '{"model": "bert_mean", "input": "a"', Buffer.from([0x22, 0xff, 0x22])]) {
    await assertRefused(await post(url, body), 400, "invalid_json");
  }
  for (const body of ["[]", "7", "null"]) await assertRefused(await post(url, body), 400, null, "JSON object");
  await assertRefused(await fetch(`${url}/v1/models/other`), 404, "model_not_found");
  await assertRefused(await fetch(`${url}/v1/models/%ff`), 404, "model_not_found");

  const large = "x".repeat(3_000_000);
  await assertRefused(await post(url, large), 413, "body_too_large", "2000");
  const chunked = new ReadableStream({
    start: (stream) => {
      stream.enqueue(Buffer.from(large));
      stream.close();
    },
  });
  await assertRefused(
    await fetch(`${url}/v1/embeddings`, { method: "POST", headers: json, body: chunked, duplex: "half" }),
    413,
    "body_too_large",
  );
  // Before the body is sent, if the client asks first.
  const asking = http.request(`${url}/v1/embeddings`, {
    method: "POST",
    headers: { ...json, "content-length": 3_000_000, expect: "100-continue" },
  });
  asking.on("continue", () => assert.fail("the body is not wanted"));
  asking.flushHeaders();
  const [answer] = await once(asking, "response");
  assert.equal(answer.statusCode, 413);
  asking.destroy();

  assert.equal((await post(url, input)).status, 200);
  assert.equal(output.stderr.split("\n").length, 2, output.stderr);
});

test("other names for this machine are refused, unless they are allowed", async (t) => {
  const { url } = await serve(t, "bert_mean", ["--allow-host", "api.example"]);
  const { port } = new URL(url);
  const status = async (host) => {
    const request = http.get(`${url}/health`, { headers: { host } });
    const [response] = await once(request, "response");
    response.resume();
    return response.statusCode;
  };
  for (const host of [`127.0.0.1:${port}`, `localhost:${port}`, "LOCALHOST", "[::1]:80", "api.example"]) {
    assert.equal(await status(host), 200, host);
  }
  for (const host of ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "a b"]) {
    assert.equal(await status(host), 403, host);
  }
});

test("truncation is told by a header, and refused if asked", async (t) => {
  const { url } = await serve(t, "bert_mean", ["--max-tokens=8"]);
  const input = ["short", "word ".repeat(100), "short", "word ".repeat(90)];
  const response = await post(url, { model: "bert_mean", input });
  assert.deepEqual([response.status, response.headers.get("x-truncated-inputs")], [200, "1,3"]);
  const whole = await post(url, { model: "bert_mean", input: "short", truncation: false });
  assert.deepEqual([whole.status, whole.headers.get("x-truncated-inputs")], [200, null]);
  await assertRefused(
    await post(url, { model: "bert_mean", input, truncation: false }),
    400,
    "context_length_exceeded",
    "input[1]",
    "8 tokens",
  );
});

for (const [name, args, layerNorm] of [
  ["nomic_cls", ["--layer-norm"], true],
  ["bert_mean", [], false],
]) {
  test(`dimensions by request equal those of Embedder.load, ${layerNorm ? "with" : "without"} layer norm`, async (t) => {
    const { client } = await serve(t, name, ["--matryoshka", "--model-name=m", ...args]);
    const { data } = await client.embeddings.create({ model: "m", input: TEXTS, dimensions: 12 });
    await withEmbedder(await model(name), { dimensions: 12, layerNorm }, async (embedder) => {
      for (const [index, vector] of (await embedder.embed(TEXTS)).entries()) {
        assert.equal(data[index].embedding.length, 12);
        assertClose(data[index].embedding, vector, 1e-5, index);
      }
    });
  });
}

test("many requests at once are answered right; too many are asked to come back", async (t) => {
  const { client, url, metric } = await serve(t, "bert_mean", ["--max-requests=8", "--threads=1"]);
  const patient = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 20 });
  const texts = Array.from({ length: 60 }, (_, index) => `text ${index}`);
  const answers = await Promise.all(texts.map((input) => patient.embeddings.create({ model: "bert_mean", input })));
  await withEmbedder(await model("bert_mean"), {}, async (embedder) => {
    const vectors = await embedder.embed(texts);
    for (const [index, { data }] of answers.entries()) assertClose(data[0].embedding, vectors[index], 1e-6, index);
  });

  const busy = Array.from({ length: 8 }, () => client.embeddings.create({ model: "bert_mean", input: MUCH }));
  await until(async () => (await metric("semantic_search_calls_in_progress")) === 8, "eight calls");
  const refused = await post(url, { model: "bert_mean", input: "a" });
  assert.equal(refused.headers.get("retry-after"), "1");
  const error = await assertRefused(refused, 429, "too_many_requests");
  assert.equal(error.type, "rate_limit_error");
  assert.equal((await fetch(`${url}/health`)).status, 200);
  for (const { data } of await Promise.all(busy)) assert.equal(data.length, MUCH.length);
  assert.equal((await post(url, { model: "bert_mean", input: "a" })).status, 200);
});

test("a client that leaves ends its call", async (t) => {
  const { client, url, metric } = await serve(t, "bert_mean", ["--threads=1"]);
  const leaving = new AbortController();
  const request = client.embeddings.create({ model: "bert_mean", input: MUCH }, { signal: leaving.signal });
  request.catch(() => {});
  await until(async () => (await metric("semantic_search_calls_in_progress")) === 1, "the call");
  leaving.abort();
  await assert.rejects(request, OpenAI.APIUserAbortError);
  await until(async () => (await metric("semantic_search_calls_in_progress")) === 0, "the call's end", 5000);
  assert.ok((await metric("semantic_search_texts_total")) < MUCH.length, "what was left was not computed");
  assert.equal(await metric('semantic_search_requests_total{route="/v1/embeddings",status="aborted"}'), 1);
  assert.equal((await post(url, { model: "bert_mean", input: "a" })).status, 200);
});

test("slow clients are not waited for", async (t) => {
  const { url, output, metric } = await serve(t, "bert_mean", ["--request-timeout=1"]);
  const { port } = new URL(url);
  const socket = net.connect(port, "127.0.0.1");
  let answer = "";
  socket.setEncoding("utf8").on("data", (text) => {
    answer += text;
  });
  socket.on("error", () => {});
  socket.write(
    "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
  );
  await once(socket, "close");
  assert.match(answer, /^HTTP\/1\.1 408 /);

  // Takes nothing of an answer that fills all buffers.
  const body = JSON.stringify({ model: "bert_mean", input: Array.from({ length: 2048 }, (_, index) => `${index}`) });
  const aborted = () => metric('semantic_search_requests_total{route="/v1/embeddings",status="aborted"}');
  const before = await aborted();
  const greedy = net.connect(port, "127.0.0.1");
  greedy.on("error", () => {});
  greedy.pause();
  const head = `POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`;
  for (let run = 0; run < 8; run++) greedy.write(head + body);
  await until(async () => (await metric("semantic_search_requests_in_flight")) > 1, "the answer");
  await until(async () => (await aborted()) > before, "the end of patience");
  await until(async () => (await metric("semantic_search_requests_in_flight")) === 1, "the end of all of it");
  greedy.destroy();
  assert.equal((await post(url, { model: "bert_mean", input: "a" })).status, 200);
  assert.equal(output.stderr.split("\n").length, 2, output.stderr);
});

test("clients that leave at any moment do no harm", async (t) => {
  const { url, output, metric } = await serve(t, "bert_mean", ["--max-body=4000", "--max-requests=4"]);
  const { port } = new URL(url);
  const bodies = [
    JSON.stringify({ model: "bert_mean", input: "a ".repeat(1000) }),
    "x".repeat(200_000),
    "{",
    JSON.stringify({ model: "bert_mean", input: MUCH.slice(0, 40) }),
  ];
  const leave = async (index) => {
    const body = bodies[index % bodies.length];
    const expect = index % 3 === 0 ? "expect: 100-continue\r\n" : "";
    const head = `POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n${expect}content-length: ${body.length}\r\n\r\n`;
    const message = head + body;
    const socket = net.connect(port, "127.0.0.1");
    socket.on("error", () => {});
    await once(socket, "connect");
    socket.write(message.slice(0, 20 + ((index * 7919) % message.length)));
    await new Promise((resolve) => setTimeout(resolve, index % 10));
    if (index % 2) socket.resetAndDestroy();
    else socket.destroy();
  };
  for (let index = 0; index < 200; index += 10) {
    await Promise.all(Array.from({ length: 10 }, (_, offset) => leave(index + offset)));
  }
  await until(async () => (await metric("semantic_search_requests_in_flight")) === 1, "all of them to be gone");
  await until(async () => (await metric("semantic_search_calls_in_progress")) === 0, "their calls to end");
  for (let run = 0; run < 5; run++) {
    assert.equal((await post(url, { model: "bert_mean", input: "a" })).status, 200, "no place is lost");
  }
  assert.equal(output.stderr.split("\n").length, 2, output.stderr);
});

test("metrics and health tell what was done", async (t) => {
  const { url, metric } = await serve(t);
  await post(url, { model: "bert_mean", input: ["a", "b"] });
  await post(url, { model: "other", input: "a" });
  const page = await fetch(`${url}/metrics`);
  assert.match(page.headers.get("content-type"), /^text\/plain; version=0\.0\.4/);
  const text = await page.text();
  for (const line of text.trimEnd().split("\n")) {
    assert.match(line, /^(# (HELP|TYPE) [a-z_0-9]+ .+|[a-z_0-9]+(\{([a-z_]+="[^"]*",?)+\})? -?[0-9.e+-]+)$/);
  }
  assert.equal(await metric('semantic_search_requests_total{route="/v1/embeddings",status="200"}'), 1);
  assert.equal(await metric('semantic_search_requests_total{route="/v1/embeddings",status="404"}'), 1);
  assert.equal(await metric('semantic_search_request_duration_seconds_bucket{route="/v1/embeddings",le="+Inf"}'), 2);
  assert.equal(await metric("semantic_search_texts_total"), 2);
  const health = await (await fetch(`${url}/health`)).json();
  await withEmbedder(await model("bert_mean"), {}, ({ fingerprint, dimension }) => {
    assert.deepEqual([health.status, health.fingerprint, health.dimension], ["ok", fingerprint, dimension]);
  });
  assert.equal((await fetch(`${url}/health`, { method: "HEAD" })).status, 200);
});

for (const signalName of ["SIGTERM", "SIGINT"]) {
  test(`${signalName}: requests in flight finish, new ones are refused, exit code 0`, POSIX, async (t) => {
    const { client, url, child, output, ended, metric } = await serve(t, "bert_mean", [
      "--threads=1",
      "--stop-timeout=30",
    ]);
    // A connection that is kept, with a request on it and one to come.
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const inFlight = client.embeddings.create({ model: "bert_mean", input: MUCH });
    const idle = http.get(`${url}/health`, { agent });
    (await once(idle, "response"))[0].resume();
    await until(async () => (await metric("semantic_search_calls_in_progress")) === 1, "the call");
    child.kill(signalName);
    await until(() => output.stderr.includes("stopping"), "the server to stop");
    await until(
      () =>
        fetch(`${url}/health`).then(
          () => false,
          () => true,
        ),
      "a refused connection",
    );
    assert.equal((await inFlight).data.length, MUCH.length);
    const { status, signal } = await ended;
    assert.deepEqual([status, signal], [0, null], output.stderr);
    agent.destroy();
  });
}

test("SIGTERM: what does not finish in time is cut off, exit code 1", POSIX, async (t) => {
  const { client, child, ended, metric } = await serve(t, "bert_mean", ["--threads=1", "--stop-timeout=0.1"]);
  const inFlight = client.embeddings.create({ model: "bert_mean", input: MUCH });
  const failed = assert.rejects(inFlight, OpenAI.APIConnectionError);
  await until(async () => (await metric("semantic_search_calls_in_progress")) === 1, "the call");
  child.kill("SIGTERM");
  const { status, stderr } = await ended;
  await failed;
  assert.equal(status, 1);
  assert.match(stderr, /^error \[CUT_OFF\]: 1 /m);
});

test("a port that is taken, and --json", async (t) => {
  const first = await serve(t);
  const { port } = new URL(first.url);
  const folder = await model("bert_mean");
  const { status, stdout, stderr } = await start(["serve", folder, `--port=${port}`]).ended;
  assert.deepEqual([status, stdout], [1, ""]);
  assert.match(stderr, /^error \[EADDRINUSE\]: .*--port/);
  const second = start(["serve", folder, "--port=0", "--json", "--model-name=mine"]);
  await until(() => second.output.stdout.includes("\n"), "the address");
  const { url, model: name, dimension } = JSON.parse(second.output.stdout);
  assert.deepEqual([name, dimension], ["mine", 48]);
  assert.equal((await fetch(`${url}/health`)).status, 200);
  second.child.kill("SIGTERM");
  assert.equal((await second.ended).stderr, "");
});
