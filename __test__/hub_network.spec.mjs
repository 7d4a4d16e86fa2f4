/** Without a network, behind a mirror, and behind a proxy. No test reaches the real Hub. */

import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { assertComplete, hubWith, ID, localCertificate, pulling, track } from "./support/hub.mjs";
import { COMMIT, refuse, startProxy } from "./support/hub_server.mjs";
import { api, embedderError, temporaryFolder } from "./support/models.mjs";

const { pull } = api;
const { proxyFor } = createRequire(import.meta.url)("../dist/lib/hub/proxy.js");

test("a pinned commit in the cache needs no network", async () => {
  const { hub, options } = await hubWith();
  const folder = await pull(`${ID}@${COMMIT}`, options);
  hub.requests.length = 0;
  assert.equal(await pull(ID, { ...options, revision: COMMIT }), folder);
  assert.deepEqual(hub.requests, []);
  hub.close();
  assert.equal(await pull(`${ID}@${COMMIT}`, options), folder);
});

test("a branch in the cache loads without the network; anything else is an error", async () => {
  const { hub, options } = await hubWith();
  const folder = await pull(ID, options);
  hub.fault("hub", /api/, (response) => refuse(response, 500));
  assert.equal(await pull(ID, options), folder, "the server is in trouble");
  hub.close();
  assert.equal(await pull(ID, options), folder, "nobody is there");
  await assert.rejects(
    pull(`${ID}@other`, options),
    embedderError("DOWNLOAD_FAILED", "connection to http://127.0.0.1", "HTTPS_PROXY", "HF_ENDPOINT"),
  );
});

test("offline mode sends no request and says what is missing", async (t) => {
  const { hub, options } = await hubWith();
  await assert.rejects(
    pull(ID, { ...options, offline: true }),
    embedderError("MODEL_NOT_FOUND", "org/model@main is not in the cache", options.cacheFolder, "HF_HUB_OFFLINE"),
  );
  assert.deepEqual(hub.requests, []);
  const folder = await pull(ID, options);
  hub.requests.length = 0;
  process.env.HF_HUB_OFFLINE = "1";
  t.after(() => delete process.env.HF_HUB_OFFLINE);
  assert.equal(await pull(ID, options), folder);
  assert.equal(await pull(`${ID}@${COMMIT}`, options), folder);
  await assert.rejects(
    pull(`${ID}@v2`, options),
    embedderError("MODEL_NOT_FOUND", "org/model@v2 is not in the cache", "it holds org/model@main"),
  );
  rmSync(path.join(folder, "tokenizer.json"));
  await assert.rejects(
    pull(ID, options),
    embedderError("MODEL_NOT_FOUND", "is in the cache without tokenizer.json", "offline mode"),
  );
  assert.deepEqual(hub.requests, []);
  assertComplete(await pull(ID, { ...options, offline: false }));
});

test("the endpoint may be a mirror below a path", async (t) => {
  const { hub, options } = await hubWith({}, { prefix: "/mirror/hf" });
  process.env.HF_ENDPOINT = `${hub.endpoint}/`;
  t.after(() => delete process.env.HF_ENDPOINT);
  assertComplete(await pull(ID, { ...options, endpoint: undefined }));
  assert.ok(hub.requests.every(({ path: asked }) => asked.startsWith("/mirror/hf/")));
});

test("HTTP_PROXY is used for http", async () => {
  const { hub, options } = await hubWith();
  const proxy = await startProxy();
  track(proxy);
  const { folder } = await pulling(options, { HTTP_PROXY: proxy.url }).result;
  assertComplete(folder);
  assert.equal(proxy.asked.length, hub.requests.length);
  assert.equal(proxy.asked[0], `GET ${hub.endpoint}/api/models/${ID}/revision/main`);
});

const certificate = await localCertificate();

test("https is tunneled through HTTPS_PROXY, except to hosts in NO_PROXY", {
  skip: !certificate && "there is no openssl to make a certificate",
}, async () => {
  const { options } = await hubWith({}, { tls: certificate.tls });
  const proxy = await startProxy();
  track(proxy);
  const env = { NODE_EXTRA_CA_CERTS: certificate.file, HTTPS_PROXY: proxy.url };
  assertComplete((await pulling(options, env).result).folder);
  assert.deepEqual([...new Set(proxy.asked.map((line) => line.replace(/\d+$/, "")))].sort(), [
    "CONNECT 127.0.0.1:",
    "CONNECT localhost:",
  ]);
  proxy.asked.length = 0;
  const elsewhere = { ...options, cacheFolder: temporaryFolder() };
  assertComplete((await pulling(elsewhere, { ...env, NO_PROXY: "example.org,127.0.0.1, localhost" }).result).folder);
  assert.deepEqual(proxy.asked, []);
  const { code, message } = await pulling({ ...options, cacheFolder: temporaryFolder() }).result;
  assert.equal(code, "DOWNLOAD_FAILED");
  assert.match(message, /self-signed certificate.*NODE_EXTRA_CA_CERTS/);
});

test("a proxy that asks for a name and password gets them; without them, the error says so", async () => {
  const proxy = await startProxy({ login: "me:pass word" });
  track(proxy);
  const url = (login) => proxy.url.replace("//", `//${login}`);
  const { options } = await hubWith();
  assertComplete((await pulling(options, { HTTP_PROXY: url("me:pass%20word@") }).result).folder);
  for (const [scheme, login] of [
    ["HTTP_PROXY", ""],
    ["HTTP_PROXY", "me:wrong@"],
    ["HTTPS_PROXY", ""],
    ["HTTPS_PROXY", "me:wrong@"],
  ]) {
    const endpoint = scheme === "HTTPS_PROXY" ? options.endpoint.replace("http:", "https:") : options.endpoint;
    const elsewhere = { ...options, endpoint, cacheFolder: temporaryFolder() };
    const { code, message } = await pulling(elsewhere, { [scheme]: url(login) }).result;
    assert.equal(code, "ACCESS_DENIED", message);
    assert.match(message, /proxy requires a name and password/);
  }
});

test("the proxy is chosen as curl and Python choose it", () => {
  const choose = (url, env) => proxyFor(new URL(url), env);
  assert.equal(choose("https://a.b/", {}), undefined);
  assert.equal(choose("https://a.b/", { HTTPS_PROXY: "http://p:1" }), "http://p:1");
  assert.equal(choose("https://a.b/", { https_proxy: "p:1" }), "http://p:1");
  assert.equal(choose("https://a.b/", { HTTP_PROXY: "http://p:1" }), undefined);
  assert.equal(choose("http://a.b/", { HTTP_PROXY: "http://p:1" }), "http://p:1");
  assert.equal(choose("http://a.b/", { ALL_PROXY: "http://p:1" }), "http://p:1");
  for (const [list, excepted] of Object.entries({
    "*": true,
    "a.b": true,
    ".a.b": true,
    "*.b": true,
    "x,  a.b": true,
    "a.b:443": true,
    "a.b:80": false,
    b: true,
    "xa.b": false,
    "": false,
    ",": false,
  })) {
    const chosen = choose("https://a.b/", { HTTPS_PROXY: "http://p:1", NO_PROXY: list });
    assert.equal(chosen === undefined, excepted, JSON.stringify(list));
  }
  assert.equal(choose("https://[::1]/", { HTTPS_PROXY: "http://p:1", no_proxy: "[::1]" }), undefined);
  assert.throws(
    () => choose("https://a.b/", { HTTPS_PROXY: "socks5://user:secret@p:1" }),
    (error) => !error.message.includes("secret") && embedderError("INVALID_ARGUMENT", "HTTPS_PROXY")(error),
  );
});
