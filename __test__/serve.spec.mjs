/** `serve`: with OpenAI's own client, and with clients that misbehave. */

import assert from "node:assert/strict";
import { once } from "node:events";
import * as http from "node:http";
import { createRequire } from "node:module";
import * as net from "node:net";
import { test } from "node:test";
import OpenAI from "openai";
import { start } from "./support/command_line.mjs";
import { assertClose, model, withEmbedder } from "./support/models.mjs";
import { until } from "./support/processes.mjs";

const { addonOptions, loadAddon } = createRequire(import.meta.url)("../dist/lib/native.js");

const POSIX = { skip: process.platform === "win32" ? "signals end a process there" : false };
const TEXTS = ["def parse(value): return int(value)", "", "日本語 🚀", "where are tokens validated?"];
/** Token ids of the fixtures. */
const VOCABULARY = 1411;
/** Some seconds of work for one thread. */
const MUCH = Array.from({ length: 2048 }, (_, index) => `${index}${" word".repeat(60)}`);

/** A server on a free port, and a client of it that does not try again. */
async function serve(t, name = "bert_mean", args = [], env = {}) {
  const server = start(["serve", await model(name), "--port=0", ...args], { env });
  t.after(async () => {
    server.child.kill("SIGKILL");
    await server.ended;
  });
  const [, url] = await server.says(/^(http:\S+)\n/);
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
});

test("OpenAI's client: a second name of the model is for queries", async (t) => {
  for (const [name, args] of [
    ["nomic_mean_dynamic", []],
    ["org/mine", ["--model-name=org/mine"]],
  ]) {
    const { client } = await serve(t, "nomic_mean_dynamic", args);
    const forQueries = `${name}:query`;
    const create = (model, input_type) => client.embeddings.create({ model, input: TEXTS, input_type });
    const { data: expected, usage } = await create(name, "query");
    for (const input_type of [undefined, null, "query", "search_query"]) {
      const answer = await create(forQueries, input_type);
      assert.deepEqual([answer.model, answer.data, answer.usage], [forQueries, expected, usage]);
    }
    const { data: documents } = await create(name);
    assert.notDeepEqual(documents, expected, "the prompts differ");
    for (const input_type of ["document", "passage", "search_document"]) {
      await assert.rejects(create(forQueries, input_type), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError);
        assert.equal(error.param, "input_type");
        for (const part of [forQueries, input_type]) assert.ok(error.message.includes(part), error.message);
        return true;
      });
    }
    const { data } = await client.models.list();
    assert.deepEqual(
      data.map(({ id, object }) => [id, object]),
      [
        [name, "model"],
        [forQueries, "model"],
      ],
    );
    for (const id of [name, forQueries]) assert.equal((await client.models.retrieve(id)).id, id);
    await assert.rejects(create(`${name}:passage`), OpenAI.NotFoundError);
  }
});

test("OpenAI's client: token ids give the vectors of their texts", async (t) => {
  for (const [name, args] of [
    ["nomic_mean_dynamic", []],
    ["bert_mean", ["--backend=onnx-js"]],
  ]) {
    const { client, url } = await serve(t, name, args);
    const create = (body) => client.embeddings.create({ model: name, ...body });
    const ids = await tokenize(name, TEXTS);
    const lists = ids.map((tokens) => [...tokens]);
    const count = (some) => some.reduce((sum, { length }) => sum + length, 0);
    const { data: expected } = await create({ input: TEXTS });
    for (const encoding_format of ["float", "base64", undefined]) {
      // No prompt is added to ids.
      for (const input_type of ["document", "query"]) {
        const { data, usage } = await create({ input: lists, encoding_format, input_type });
        assert.equal(data.length, TEXTS.length);
        for (const [index, one] of data.entries()) {
          const embedding = typeof one.embedding === "string" ? decoded(one.embedding) : one.embedding;
          assertClose(embedding, expected[index].embedding, 1e-6, `${name} ${encoding_format} ${index}`);
        }
        assert.equal(usage.total_tokens, count(ids));
      }
    }
    const one = await create({ input: lists[0] });
    assert.equal(one.data.length, 1);
    assertClose(one.data[0].embedding, expected[0].embedding, 1e-6, `${name}, alone`);
    assert.deepEqual(one.usage, { prompt_tokens: count([ids[0]]), total_tokens: count([ids[0]]) });
    const twice = await create({ input: [lists[0], lists[3], lists[0]] });
    assert.deepEqual(twice.data[2].embedding, twice.data[0].embedding);
    assert.equal(twice.usage.total_tokens, count([ids[0], ids[3]]));
    assert.equal((await post(url, `{"model": "${name}", "input": [1e1, -0, 2.0]}`)).status, 200);
  }
});

/** As the model has them, behind the prompt for documents. */
async function tokenize(name, texts) {
  const tokenizer = await loadAddon().Model.load(await model(name), addonOptions({}));
  const ids = texts.map((text) => tokenizer.tokenize(text, false));
  await tokenizer.close();
  return ids;
}

function decoded(base64) {
  const bytes = Buffer.from(base64, "base64");
  return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readFloatLE(4 * index));
}

test("OpenAI's client: errors are of its own classes", async (t) => {
  const { client } = await serve(t, "bert_mean", ["--max-batch=3"]);
  const create = (body) => client.embeddings.create({ model: "bert_mean", input: "a", ...body });
  await assert.rejects(create({ model: "gpt" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.code, error.param, error.type], ["model_not_found", "model", "invalid_request_error"]);
    return true;
  });
  for (const [body, param, ...parts] of [
    [{ input: [] }, "input", "at least one text"],
    [{ input: ["a", null] }, "input", "input[1]"],
    [{ input: [null] }, "input", "input[0]", "a string or an array of token ids"],
    [{ input: 7 }, "input", "7"],
    [{ input: [1, 2, VOCABULARY] }, "input", "input[2]", "from 0 to 1410", "found 1411", "LangChain"],
    [{ input: [[1], [2, 100_257]] }, "input", "input[1][1]", "check_embedding_ctx_length=False"],
    [{ input: [1, -1] }, "input", "input[1]", "found -1"],
    [{ input: [1.5] }, "input", "input[0]", "found 1.5"],
    [{ input: [[1], [0.1]] }, "input", "input[1][0]", "found 0.1"],
    [{ input: [2 ** 32 + 1] }, "input", "input[0]", "found 4294967297"],
    [{ input: [1, "2"] }, "input", "input[1]", 'found "2"'],
    [{ input: [1, null] }, "input", "input[1]", "found null"],
    [{ input: [1, [2]] }, "input", "input[1]", "an array of 1"],
    [{ input: [[1], [[2]]] }, "input", "input[1][0]", "an array of 1"],
    [{ input: [[]] }, "input", "input[0]", "at least one token id"],
    [{ input: [[1], []] }, "input", "input[1]", "at least one token id"],
    [{ input: ["a", [1]] }, "input", "input[1]", "a string, as input[0] is", "an array of 1"],
    [{ input: ["a", 1] }, "input", "input[1]", "a string, as input[0] is", "found 1"],
    [{ input: [[1], "a"] }, "input", "input[1]", "an array of token ids, as input[0] is", 'found "a"'],
    [{ input: [[1], 2] }, "input", "input[1]", "an array of token ids, as input[0] is", "found 2"],
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
  await assert.rejects(create({ input: [[1], [2], [3], [4]] }), { status: 413, code: "batch_too_large" });
  assert.equal((await create({ input: [1, 2, 3, VOCABULARY - 1] })).data.length, 1, "they are of one text");
  assert.equal((await create({ dimensions: 48, user: "somebody" })).data[0].embedding.length, 48);
});

test("an API key is required, except for /health", async (t) => {
  const { client, url } = await serve(t, "bert_mean", [], { SEMANTIC_SEARCH_API_KEY: "secret" });
  const input = { model: "bert_mean", input: "a" };
  assert.equal((await client.embeddings.create(input)).data.length, 1);
  const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.embeddings.create(input), OpenAI.AuthenticationError);
  await assertRefused(await post(url, input), 401, "invalid_api_key", "Authorization");
  for (const path of ["/metrics", "/v1/models"]) assert.equal((await fetch(url + path)).status, 401);
  assert.equal((await fetch(`${url}/health`)).status, 200);
});

test("invalid requests get their status and code, and the server goes on", async (t) => {
  const { url, output } = await serve(t, "bert_mean", ["--max-body=2000"]);
  const json = { "content-type": "application/json" };
  const input = { model: "bert_mean", input: "a" };
  await assertRefused(await fetch(`${url}/v1/nothing`), 404, "not_found", "/v1/embeddings");
  await assertRefused(await fetch(`${url}/v1/embeddings`), 405, "method_not_allowed", "POST");
  const preflight = await fetch(`${url}/v1/embeddings`, { method: "OPTIONS" });
  assert.deepEqual([preflight.status, preflight.headers.get("allow")], [405, "POST"]);
  assert.equal(preflight.headers.get("access-control-allow-origin"), null);
  await assertRefused(await post(url, input, { "content-type": "text/plain" }), 415, "unsupported_media_type");
  await assertRefused(await post(url, input, { "content-encoding": "gzip" }), 415, "unsupported_media_type");
  for (const body of ["{", "", '{"model": "bert_mean", "input": "a"', Buffer.from([0x22, 0xff, 0x22])]) {
    await assertRefused(await post(url, body), 400, "invalid_json");
  }
  for (const body of ["[]", "7", "null"])
    await assertRefused(await post(url, body), 400, "invalid_value", "JSON object");
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

test("other host names are refused unless allowed", async (t) => {
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

test("requests from web pages are refused unless there is an API key", async (t) => {
  const open = await serve(t);
  const input = { model: "bert_mean", input: "a" };
  const { port } = new URL(open.url);
  for (const origin of [
    "https://evil.example",
    "null",
    "http://localhost:1",
    `https://127.0.0.1:${port}`.replace(port, "2"),
  ]) {
    await assertRefused(await post(open.url, input, { origin }), 403, "origin_not_allowed", origin);
    assert.equal((await fetch(`${open.url}/health`, { headers: { origin } })).status, 403);
    const preflight = await fetch(`${open.url}/v1/embeddings`, { method: "OPTIONS", headers: { origin } });
    assert.deepEqual([preflight.status, preflight.headers.get("access-control-allow-origin")], [403, null]);
  }
  assert.equal((await post(open.url, input, { origin: open.url })).status, 200);

  const closed = await serve(t, "bert_mean", [], { SEMANTIC_SEARCH_API_KEY: "secret" });
  const headers = { origin: "https://page.example", authorization: "Bearer secret" };
  assert.equal((await post(closed.url, input, headers)).status, 200);
});

test("a host that other machines can reach needs an API key or --insecure", async (t) => {
  for (const host of ["0.0.0.0", "::"]) {
    const { status, stdout, stderr } = await start(["serve", await model("bert_mean"), `--host=${host}`, "--port=0"])
      .ended;
    assert.deepEqual([status, stdout], [2, ""]);
    assert.match(stderr, /^error \[USAGE\]: .*SEMANTIC_SEARCH_API_KEY.*--insecure/);
  }
  const input = { model: "bert_mean", input: "a" };
  const withKey = await serve(t, "bert_mean", ["--host=0.0.0.0"], { SEMANTIC_SEARCH_API_KEY: "secret" });
  const local = withKey.url.replace("0.0.0.0", "127.0.0.1");
  await assertRefused(await post(local, input), 401, "invalid_api_key");
  assert.equal((await post(local, input, { authorization: "Bearer secret" })).status, 200);
  const insecure = await serve(t, "bert_mean", ["--host=0.0.0.0", "--insecure"]);
  const open = insecure.url.replace("0.0.0.0", "127.0.0.1");
  assert.equal((await post(open, input)).status, 200);
  // A page whose name points here.
  const { port } = new URL(open);
  const rebound = http.request(`${open}/v1/embeddings`, {
    method: "POST",
    headers: {
      host: `evil.example:${port}`,
      origin: `http://evil.example:${port}`,
      "content-type": "application/json",
    },
  });
  rebound.end(JSON.stringify(input));
  const [response] = await once(rebound, "response");
  response.resume();
  assert.equal(response.statusCode, 403);
});

/** What comes back for these bytes until the server closes the connection: status line, headers, body. */
async function exchangeBytes(url, pieces) {
  const socket = net.connect(new URL(url).port, "127.0.0.1");
  let answer = "";
  socket.setEncoding("utf8").on("data", (text) => {
    answer += text;
  });
  socket.on("error", () => {});
  for (const piece of pieces) socket.write(piece);
  await once(socket, "close");
  const [head, body] = answer.split("\r\n\r\n");
  return { head, body, status: Number(head.split(" ")[1]) };
}

test("malformed HTTP gets an error in JSON, and nothing hangs", async (t) => {
  const { url, output } = await serve(t, "bert_mean", ["--request-timeout=1"]);
  const post = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
  const body = JSON.stringify({ model: "bert_mean", input: "a" });
  const chunked = `${post}connection: close\r\ntransfer-encoding: chunked\r\n\r\n`;
  const cases = [
    [400, "malformed_request", "HELLO\r\n\r\n"],
    [400, "malformed_request", "GET /health HTTP/1.1\r\nconnection: close\r\n\r\n"],
    [400, "malformed_request", `${post}content-length: -1\r\n\r\n`],
    [400, "malformed_request", `${post}content-length: 1\r\ncontent-length: 2\r\n\r\n`],
    [400, "malformed_request", `${post}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`],
    [400, "malformed_request", `${chunked}zz\r\n`],
    [431, "headers_too_large", `GET /health HTTP/1.1\r\nhost: localhost\r\nx: ${"x".repeat(20_000)}\r\n\r\n`],
    [417, "expectation_failed", `${post}connection: close\r\nexpect: wonders\r\ncontent-length: 2\r\n\r\n`],
    // Announced, and never sent.
    [408, "request_timeout", `${post}content-length: 1000\r\n\r\n${body}`],
    [408, "request_timeout", "GET /health HTTP/1.1\r\nhost: local"],
    [413, "body_too_large", `${post}connection: close\r\ncontent-length: 99999999999999\r\n\r\n{`],
    // The rest of what was announced shorter than it is.
    [400, "invalid_json", `${post}connection: close\r\ncontent-length: 10\r\n\r\n${body}`],
  ];
  const check = async ([status, code, bytes]) => {
    const answer = await exchangeBytes(url, [bytes]);
    assert.equal(answer.status, status, `${bytes.slice(0, 200)}: ${answer.head}`);
    assert.match(answer.head, /^content-type: application\/json\r?$/im);
    assert.equal(JSON.parse(answer.body).error.code, code, answer.body);
  };
  // Together, since some take until the server's patience ends.
  await Promise.all(cases.map(check));
  const bytes = Array.from(body, (byte) => `1\r\n${byte}\r\n`);
  const whole = await exchangeBytes(url, [chunked, ...bytes, "0\r\n\r\n"]);
  assert.equal(whole.status, 200, whole.head);
  assert.equal(output.stderr.split("\n").length, 2, output.stderr);
});

test("a body in chunks of one byte takes no more memory than another", async (t) => {
  const { url, metric } = await serve(t);
  const chunk = (byte) => `1\r\n${byte}\r\n`;
  const body = JSON.stringify({ model: "bert_mean", input: "a", user: "x".repeat(200_000) });
  const head =
    "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n" +
    "transfer-encoding: chunked\r\n\r\n";
  const before = await metric("process_resident_memory_bytes");
  const answers = await Promise.all(
    Array.from({ length: 4 }, () => exchangeBytes(url, [head, Array.from(body, chunk).join(""), "0\r\n\r\n"])),
  );
  for (const { status, head } of answers) assert.equal(status, 200, head);
  const grown = (await metric("process_resident_memory_bytes")) - before;
  // An object for each byte would be some 330 MB.
  assert.ok(grown < 100e6, `grew by ${Math.round(grown / 1e6)} MB`);
});

test("malicious bodies are refused", async (t) => {
  const { url, output } = await serve(t, "bert_mean", ["--matryoshka"]);
  const embeddings = (fields) => post(url, `{"model": "bert_mean", "input": "a"${fields}}`);
  for (const key of ["__proto__", "constructor", "toString"]) {
    await assertRefused(await embeddings(`, "${key}": {"input": "b"}`), 400, "unknown_parameter", key);
    await assertRefused(await embeddings(`, "input_type": "${key}"`), 400, "invalid_value", key);
  }
  for (const number of ["1e400", "1e308", "-1e308", "0", "-0", "1.5", "9007199254740993", '"12"', "[12]", "true"]) {
    await assertRefused(await embeddings(`, "dimensions": ${number}`), 400, "invalid_value", "dimensions");
  }
  await assertRefused(await post(url, `{"input": ${"[".repeat(1_000_000)}`), 400, "invalid_json");
  const deep = `${"[".repeat(500_000)}${"]".repeat(500_000)}`;
  await assertRefused(await post(url, `{"model": "bert_mean", "input": ${deep}}`), 400, "invalid_value");
  // As every JSON parser of JavaScript has it: the last one counts.
  const twice = await embeddings(', "input": "b", "input": ["c", "d"]');
  assert.equal((await twice.json()).data.length, 2);
  assert.equal((await embeddings(', "user": "\\ud800"')).status, 200);
  assert.equal((await embeddings(', "input": "\\ud800"')).status, 200);
  assert.equal(output.stderr.split("\n").length, 2, output.stderr);
});

test("truncation is reported in a header, and refused on request", async (t) => {
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
  const tokens = Array.from({ length: 20 }, (_, index) => 100 + index);
  for (const [ids, indices, which] of [
    [tokens, "0", "input is"],
    [[[1], tokens, tokens.slice(0, 8)], "1", "input[1] is"],
  ]) {
    const cut = await post(url, { model: "bert_mean", input: ids, encoding_format: "float" });
    assert.deepEqual([cut.status, cut.headers.get("x-truncated-inputs")], [200, indices]);
    const kept = await post(url, { model: "bert_mean", input: tokens.slice(0, 8), encoding_format: "float" });
    const [{ data, usage }, { data: expected }] = [await cut.json(), await kept.json()];
    assertClose(data[Number(indices)].embedding, expected[0].embedding, 1e-6, which);
    assert.equal(usage.total_tokens, indices === "0" ? 8 : 17);
    const refused = await post(url, { model: "bert_mean", input: ids, truncation: false });
    await assertRefused(refused, 400, "context_length_exceeded", which, "8 tokens");
  }
});

for (const [name, args, layerNorm] of [
  ["nomic_cls", ["--layer-norm"], true],
  ["bert_mean", [], false],
]) {
  test(`dimensions of a request equal those of Embedder.load, ${layerNorm ? "with" : "without"} layer norm`, async (t) => {
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

test("many concurrent requests get the right vectors; too many are told to retry", async (t) => {
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

test("a client that disconnects ends its call", async (t) => {
  const { client, url, metric } = await serve(t, "bert_mean", ["--threads=1"]);
  const leaving = new AbortController();
  const request = client.embeddings.create({ model: "bert_mean", input: MUCH }, { signal: leaving.signal });
  request.catch(() => {});
  await until(async () => (await metric("semantic_search_calls_in_progress")) === 1, "the call");
  leaving.abort();
  await assert.rejects(request, OpenAI.APIUserAbortError);
  await until(async () => (await metric("semantic_search_calls_in_progress")) === 0, "the call's end");
  assert.ok((await metric("semantic_search_texts_total")) < MUCH.length, "what was left was not computed");
  assert.equal(await metric('semantic_search_requests_total{route="/v1/embeddings",status="aborted"}'), 1);
  assert.equal((await post(url, { model: "bert_mean", input: "a" })).status, 200);
});

test("slow clients are disconnected", async (t) => {
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

const LOOPBACKS = { skip: process.platform === "darwin" ? "it has one loopback address" : false };

test("clients that stop reading are disconnected, and block only their own places", LOOPBACKS, async (t) => {
  const { url, metric } = await serve(t, "bert_mean", [
    "--max-requests=12",
    "--max-requests-per-client=6",
    "--request-timeout=3",
  ]);
  const { port } = new URL(url);
  const body = JSON.stringify({ model: "bert_mean", input: Array.from({ length: 2048 }, (_, index) => `${index}`) });
  const request =
    "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" +
    `content-length: ${body.length}\r\n\r\n${body}`;
  const readers = Array.from({ length: 6 }, () => {
    const socket = net.connect({ port, host: "127.0.0.1", localAddress: "127.0.0.2" });
    socket.on("error", () => {});
    socket.pause();
    // More answers than all buffers hold.
    for (let run = 0; run < 8; run++) socket.write(request);
    return socket;
  });
  const aborted = () => metric('semantic_search_requests_total{route="/v1/embeddings",status="aborted"}');
  await until(async () => (await metric("semantic_search_requests_in_flight")) > 6, "the readers");
  const [refused] = await Promise.all([
    postFrom("127.0.0.2"),
    until(async () => (await postFrom("127.0.0.1")) === 200, "a place"),
  ]);
  assert.equal(refused, 429, "the readers' own address has no place left");
  await until(async () => (await aborted()) >= 6, "the end of patience");
  for (const reader of readers) reader.destroy();
  await until(async () => (await postFrom("127.0.0.2")) === 200, "their places");

  async function postFrom(localAddress) {
    const headers = { "content-type": "application/json" };
    const one = http.request(`${url}/v1/embeddings`, { method: "POST", headers, localAddress, agent: false });
    one.end(JSON.stringify({ model: "bert_mean", input: "a" }));
    const [response] = await once(one, "response");
    response.resume();
    if (response.statusCode === 429) assert.equal(response.headers["retry-after"], "1");
    return response.statusCode;
  }
});

test("clients that disconnect at any moment do no harm", async (t) => {
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

test("metrics and health report what was done", async (t) => {
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
    const { client, url, child, output, ended, says, metric } = await serve(t, "bert_mean", [
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
    await says(/stopping/, "stderr");
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

test("SIGTERM: kept-alive connections get one more answer, with connection: close", POSIX, async (t) => {
  const { url, child, output, ended, says } = await serve(t);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
  const ask = async (path, body) => {
    const headers = { "content-type": "application/json" };
    const request = http.request(url + path, { agent, method: body ? "POST" : "GET", headers });
    request.end(body);
    const [response] = await once(request, "response");
    let text = "";
    for await (const part of response.setEncoding("utf8")) text += part;
    return { status: response.statusCode, headers: response.headers, text };
  };
  const input = JSON.stringify({ model: "bert_mean", input: "a" });
  await Promise.all(Array.from({ length: 8 }, () => ask("/v1/embeddings", input)));
  assert.equal(Object.values(agent.freeSockets).flat().length, 8);
  // Never used, and so nothing to wait for.
  const unused = net.connect(new URL(url).port, "127.0.0.1");
  await once(unused, "connect");
  child.kill("SIGTERM");
  await says(/stopping/, "stderr");
  const answers = await Promise.all(Array.from({ length: 6 }, () => ask("/v1/embeddings", input)));
  for (const { status, headers } of answers) assert.deepEqual([status, headers.connection], [200, "close"]);
  const health = await ask("/health");
  assert.deepEqual([health.status, health.headers["retry-after"]], [503, "1"]);
  assert.equal(JSON.parse(health.text).error.code, "stopping");
  const { status, signal } = await ended;
  assert.deepEqual([status, signal], [0, null], output.stderr);
  agent.destroy();
  unused.destroy();
});

test("SIGTERM: requests that do not finish in time are cut off, exit code 1", POSIX, async (t) => {
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

test("a port in use is an error; --json prints the address as JSON", async (t) => {
  const first = await serve(t);
  const { port } = new URL(first.url);
  const folder = await model("bert_mean");
  const { status, stdout, stderr } = await start(["serve", folder, `--port=${port}`]).ended;
  assert.deepEqual([status, stdout], [1, ""]);
  assert.match(stderr, /^error \[EADDRINUSE\]: .*--port/);
  const second = start(["serve", folder, "--port=0", "--json", "--model-name=mine"]);
  const [line] = await second.says(/.*\n/);
  const { url, model: name, dimension } = JSON.parse(line);
  assert.deepEqual([name, dimension], ["mine", 48]);
  assert.equal((await fetch(`${url}/health`)).status, 200);
  second.child.kill("SIGTERM");
  assert.equal((await second.ended).stderr, "");
});
