/** For the JavaScript fallback: what is not a regular file, and names in a model's files that lead out of its folder. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { findOnnxFile } from "../dist/lib/fallback/onnx_file.js";
import { ModelCache } from "../dist/lib/hub/cache.js";
import { api, changedModel, embedderError, temporaryFolder } from "./support/models.mjs";
import { tableModel } from "./support/onnx_writer.mjs";

const WIDTH = 48;
const table = Float32Array.from({ length: 1500 * WIDTH }, (_, index) => Math.sin(index) + 0.1);

/** What a file is replaced by, and what is said about it. */
const REPLACEMENTS = {
  "a folder": { replace: (file) => mkdirSync(file), said: "a folder" },
  ...(process.platform !== "win32" && {
    "a named pipe": { replace: (file) => execFileSync("mkfifo", [file]), said: "expected a regular file" },
    "a device": { replace: (file) => symlinkSync("/dev/zero", file), said: "expected a regular file" },
    "a terabyte": {
      replace: (file) => {
        writeFileSync(file, "");
        truncateSync(file, 2 ** 40);
      },
      said: "expected at most",
    },
  }),
};

/** Loads in the fallback's process. What never ends is a failure. */
async function load(folder) {
  const limit = new AbortController();
  const late = setTimeout(120_000, undefined, { signal: limit.signal }).then(() => assert.fail("loading does not end"));
  late.catch(() => {});
  try {
    return await Promise.race([api.Embedder.load(folder, { backend: "onnx-js" }), late]);
  } finally {
    limit.abort();
  }
}

test("what is not a regular file is refused by name, without waiting for it", async () => {
  const external = tableModel({ table, width: WIDTH, externalData: "table.bin" });
  const files = { "semantic-search-native.onnx": null, "model.onnx": external, "table.bin": Buffer.from(table.buffer) };
  const settings = ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"];
  for (const name of [...settings, "tokenizer_config.json", "tokenizer.json", "model.onnx", "table.bin"]) {
    for (const [kind, { replace, said }] of Object.entries(REPLACEMENTS)) {
      // External data may have any size, and is read to its end.
      if (name === "table.bin" && kind === "a terabyte") continue;
      const folder = await changedModel("bert_mean", files);
      const file = path.join(folder, name);
      rmSync(file);
      replace(file);
      await assert.rejects(load(folder), embedderError("MODEL_INVALID", name, said), `${kind} as ${name}`);
    }
  }
});

test("a pipe in the Hub's cache does not count as a file", { skip: process.platform === "win32" }, async () => {
  const cache = new ModelCache(temporaryFolder(), "org/model", true);
  mkdirSync(path.join(cache.folder, "refs"), { recursive: true });
  REPLACEMENTS["a named pipe"].replace(path.join(cache.folder, "refs", "main"));
  assert.equal(await cache.commitOf("main"), undefined);
});

/** Makes the exported graph one of somebody else, which does not say of which `config.json` it is. */
function asForeignGraph(folder) {
  renameSync(path.join(folder, "semantic-search-native.onnx"), path.join(folder, "model.onnx"));
  return folder;
}

test("absurd settings are refused as in the addon", async () => {
  for (const key of ["hidden_size", "vocab_size", "max_position_embeddings"]) {
    for (const number of ["0", "-1", "0.5", "1e18", "1e400", "4294967296"]) {
      const changed = { "config.json": (config) => ({ ...config, [key]: "here" }) };
      const folder = asForeignGraph(await changedModel("bert_mean", changed));
      const file = path.join(folder, "config.json");
      writeFileSync(file, readFileSync(file, "utf8").replace('"here"', number));
      // What no number can hold is found before the keys are read.
      const said = number === "1e400" ? "a number out of range" : key;
      await assert.rejects(load(folder), embedderError("MODEL_INVALID", "config.json", said), `${key} ${number}`);
    }
  }
  const nested = `{"hidden_size": ${"[".repeat(1e6)}${"]".repeat(1e6)}}`;
  await assert.rejects(
    load(await changedModel("bert_mean", { "config.json": nested })),
    embedderError("MODEL_INVALID", "config.json", "127 levels"),
  );
});

/** A protobuf field that holds a message, a text or bytes. */
function field(number, value) {
  const bytes = Buffer.from(value);
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
}

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Buffer.from([...bytes, value]);
}

/** Where tensors may lie in a model, as field numbers of `onnx.proto`. */
const PLACES = {
  "an initializer": [7, 5],
  "an attribute": [7, 1, 5, 5],
  "a list of tensors in an attribute": [7, 1, 5, 10],
  "an initializer of a branch": [7, 1, 5, 6, 5],
  "an attribute of a branch": [7, 1, 5, 6, 1, 5, 5],
  "an initializer of one of several branches": [7, 1, 5, 11, 5],
  "values of a sparse initializer": [7, 15, 1],
  "indices of a sparse initializer": [7, 15, 2],
  "a sparse attribute": [7, 1, 5, 22, 1],
  "a list of sparse attributes": [7, 1, 5, 23, 2],
  "a function's node": [25, 7, 5, 5],
  "a function's default": [25, 11, 5],
  "the start of a training": [20, 1, 5],
  "a step of a training": [20, 2, 1, 5, 5],
};

test("external data outside the folder is refused, wherever the graph refers to it", () => {
  const dir = temporaryFolder();
  const graph = tableModel({ table: table.subarray(0, WIDTH), width: WIDTH });
  const find = (bytes) => {
    writeFileSync(path.join(dir, "model.onnx"), bytes);
    return findOnnxFile({ dir, transformerDir: dir }, "auto");
  };
  // Messages that follow each other are one.
  const hidden = (place, entry) =>
    Buffer.concat([graph, [...place, 13].reduceRight((inner, n) => field(n, inner), entry)]);
  const entry = (location) => Buffer.concat([field(1, "location"), field(2, location)]);
  const refused = embedderError("MODEL_INVALID", "model.onnx", "inside the model folder");
  assert.equal(find(graph).weightHashes.length, 1);
  writeFileSync(path.join(dir, "weights.bin"), "weights");
  const outside = ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "", "*/_ORT_MEM_ADDR_/*"];
  for (const [name, place] of Object.entries(PLACES)) {
    assert.equal(find(hidden(place, entry("weights.bin"))).weightHashes.length, 2, `${name} is seen`);
    assert.equal(find(hidden(place, entry("./weights.bin"))).weightHashes.length, 2, name);
    for (const location of outside) assert.throws(() => find(hidden(place, entry(location))), refused, name);
  }
  // What comes last counts: for the key, the value, and the location of a tensor.
  const twice = [
    Buffer.concat([field(1, "offset"), field(2, "weights.bin"), field(1, "location"), field(2, "../x")]),
    Buffer.concat([field(1, "location"), field(2, "../x"), field(1, "location")]),
  ];
  for (const bytes of twice) assert.throws(() => find(hidden([7, 5], bytes)), refused);
});

test("a file that is not an ONNX model from first to last byte is refused", () => {
  const dir = temporaryFolder();
  const graph = tableModel({ table: table.subarray(0, WIDTH), width: WIDTH });
  const outside = field(5, field(13, Buffer.concat([field(1, "location"), field(2, "../x")])));
  const damaged = {
    truncated: graph.subarray(0, -1),
    "a tag that is a known one in 32 bits": Buffer.concat([
      graph,
      Buffer.from([0xba, 0x80, 0x80, 0x80, 0x10]),
      varint(outside.length),
      outside,
    ]),
    "a group": Buffer.concat([graph, Buffer.from([0x9b, 0x06, 0x9c, 0x06])]),
    "no field number": Buffer.concat([graph, Buffer.from([0x02, 0x00])]),
    "a length beyond the end": Buffer.concat([graph, Buffer.from([0x3a, 0xff, 0xff, 0xff, 0x7f])]),
    "an endless number": Buffer.concat([graph, Buffer.alloc(20, 0xff)]),
  };
  for (const [what, bytes] of Object.entries(damaged)) {
    writeFileSync(path.join(dir, "model.onnx"), bytes);
    const find = () => findOnnxFile({ dir, transformerDir: dir }, "auto");
    assert.throws(find, embedderError("MODEL_INVALID", "model.onnx", "not a complete ONNX model"), what);
  }
});
