/** The command line, as a user calls it: in child processes. `serve` has a file of its own. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { cpSync, existsSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { MAIN, run, start } from "./support/command_line.mjs";
import { filesIn, startHub } from "./support/hub_server.mjs";
import { api, assertClose, changedModel, model, ROOT, temporaryFolder, withEmbedder } from "./support/models.mjs";
import * as processes from "./support/processes.mjs";

const { loadAddon } = createRequire(import.meta.url)("../dist/lib/native.js");

const POSIX = { skip: process.platform === "win32" ? "signals end a process there" : false };
const COMMANDS = ["pull", "models", "rm", "embed", "rerank", "serve", "export", "doctor", "completions"];
const TEXTS = ["def parse(value): return int(value)", "", "日本語 🚀 Ångström", " with\u2028separators ", "last"];

const records = (stdout) =>
  stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));

async function expected(folder, texts, { load, ...call } = {}) {
  return withEmbedder(folder, load ?? {}, (embedder) => embedder.embed(texts, call));
}

/** Reads a .npy file by the rules of NumPy's format description, version 1.0. */
function readNpy(file) {
  const bytes = readFileSync(file);
  assert.equal(bytes.toString("latin1", 0, 8), "\x93NUMPY\x01\x00");
  const start = 10 + bytes.readUInt16LE(8);
  assert.equal(start % 64, 0, "data is aligned");
  const header = bytes.toString("latin1", 10, start);
  assert.match(header, / *\n$/);
  const [, type, order, rows, columns] =
    /^\{'descr': '(.*)', 'fortran_order': (\w+), 'shape': \((\d+), (\d+)\), \} *\n$/.exec(header) ?? [];
  assert.equal(order, "False");
  const array = { "<f4": Float32Array, "|i1": Int8Array, "|u1": Uint8Array }[type];
  const data = new array(bytes.buffer.slice(bytes.byteOffset + start, bytes.byteOffset + bytes.length));
  assert.equal(data.length, rows * columns, "the header says how much there is");
  return Array.from({ length: Number(rows) }, (_, row) => data.subarray(row * columns, (row + 1) * columns));
}

test("help and version: on stdout, with exit code 0, and fast", async () => {
  const { version } = JSON.parse(readFileSync(path.join(ROOT, "package.json"), "utf8"));
  assert.deepEqual(await run(["--version"]), { status: 0, signal: null, stdout: `${version}\n`, stderr: "" });
  const { status, stdout } = await run(["--help"]);
  assert.equal(status, 0);
  for (const word of [...COMMANDS, "Exit codes", "130"]) assert.ok(stdout.includes(word), word);
  for (const command of COMMANDS) {
    const help = await run([command, "--help"]);
    assert.equal(help.status, 0);
    for (const word of ["Examples:", `$ semantic-search-native ${command}`, "--json"]) {
      if (!["serve", "completions"].includes(command)) assert.ok(help.stdout.includes(word), `${command}: ${word}`);
    }
    assert.deepEqual(await run(["help", command]), help);
  }
  const unknown = await run(["help", "embd"]);
  assert.deepEqual([unknown.status, unknown.stdout], [2, ""]);
});

test("help: defaults are in the unit of their option", async () => {
  const { stdout } = await run(["serve", "--help"]);
  assert.match(
    stdout.replace(/\s+/g, " "),
    /--request-timeout <seconds> [^<]* \(default: 60\) --stop-timeout <seconds> [^<]*: 8\)/,
  );
  const doctor = await run(["doctor", "--help"]);
  assert.match(doctor.stdout.replace(/\s+/g, " "), /--measure <seconds> [^<]* \(default: 2\)/);
});

test("help loads neither the addon nor the package's API", async () => {
  const folder = temporaryFolder();
  const spy = path.join(folder, "spy.cjs");
  const modules = "Object.keys(require.cache).filter((file) => !file.includes('node_modules')).join('\\n')";
  writeFileSync(spy, `process.on("exit", () => require("node:fs").writeFileSync(process.env.SPY, ${modules}));`);
  const out = path.join(folder, "loaded");
  await run(["embed", "--help"], "", { env: { NODE_OPTIONS: `--require=${spy}`, SPY: out } });
  const loaded = readFileSync(out, "utf8");
  assert.match(loaded, /cli.embed\.js/);
  assert.doesNotMatch(loaded, /embedder\.js|native\.js|hub/);
});

test("usage errors: exit code 2 and one line that says what is wrong", async () => {
  const folder = await model("bert_mean");
  for (const [args, ...parts] of [
    [["embd"], "unknown command 'embd'", "embed"],
    [["embed"], "missing required argument 'model'"],
    [["embed", folder, "--knd=query"], "'--knd=query'"],
    [["embed", folder, "--kind=code"], "code", "query, document"],
    [["embed", folder, "--max-tokens=many"], "'many'", "whole number"],
    [["embed", folder, "--max-tokens=2"], "INVALID_ARGUMENT", "maxTokens"],
    [["embed", folder, "--memory-budget=lots"], "512MB"],
    [["serve", folder, "--port=99999"], "65535"],
    [["serve", folder, "--matryoshka", "--no-normalize"], "--matryoshka"],
    [["pull", "no-org"], "INVALID_ARGUMENT", "such as"],
    [["pull", "all-minilm-l6-v2@main"], "the full name sentence-transformers/all-MiniLM-L6-v2"],
    [["models", "extra"], "too many arguments"],
  ]) {
    const { status, stdout, stderr } = await run(args);
    assert.equal(status, 2, stderr);
    assert.equal(stdout, "");
    assert.match(stderr, /^error \[(USAGE|INVALID_ARGUMENT)\]: .*\n$/);
    for (const part of parts) assert.ok(stderr.includes(part), `${part} in ${stderr}`);
  }
  const bare = await run([]);
  assert.equal(bare.status, 2);
  assert.match(bare.stderr, /^Usage: /);
});

test("failures: exit code 1, one line, no stack; with --json an object", async () => {
  const nowhere = path.join(temporaryFolder(), "nowhere");
  for (const args of [
    ["embed", nowhere],
    ["export", nowhere],
    ["serve", nowhere, "--port=0"],
  ]) {
    const plain = await run(args);
    assert.deepEqual([plain.status, plain.stdout], [1, ""]);
    assert.match(plain.stderr, /^error \[MODEL_NOT_FOUND\]: .*nowhere.*\n$/);
    const json = await run([...args, "--json"]);
    assert.deepEqual([json.status, json.stdout], [1, ""]);
    assert.equal(JSON.parse(json.stderr).error.code, "MODEL_NOT_FOUND");
  }
  const { status, stderr } = await run(["embed", await model("bert_mean"), nowhere]);
  assert.equal(status, 1);
  assert.match(stderr, /^error \[ENOENT\]: .*nowhere/);
});

test("embed: turns lines into JSON lines, in order, with the vectors of Embedder", async () => {
  const folder = await model("nomic_mean_dynamic");
  for (const kind of ["document", "query"]) {
    const { status, stdout, stderr } = await run(["embed", folder, `--kind=${kind}`], TEXTS.join("\n"));
    assert.equal(status, 0, stderr);
    assert.match(stderr, /^5 texts in /);
    const vectors = await expected(folder, TEXTS, { kind });
    for (const [index, record] of records(stdout).entries()) {
      assert.deepEqual([record.index, record.line], [index, index + 1]);
      assertClose(record.vector, vectors[index], 1e-6, `text ${index}`);
    }
    assert.equal(records(stdout).length, TEXTS.length);
  }
});

test("embed: line endings, a byte order mark, and text after the last line ending", async () => {
  const folder = await model("bert_mean");
  const vectors = await expected(folder, ["one", "", "two"]);
  for (const input of ["one\n\ntwo\n", "one\r\n\r\ntwo\r\n", "\ufeffone\n\ntwo"]) {
    const { stdout } = await run(["embed", folder, "-q"], input);
    assert.deepEqual(
      records(stdout).map(({ vector }) => Float32Array.from(vector)),
      vectors,
      JSON.stringify(input),
    );
  }
  assert.deepEqual(await run(["embed", folder, "-q"]), { status: 0, signal: null, stdout: "", stderr: "" });
});

test("embed: JSON lines keep their ids, invalid lines are reported by number, exit code 1", async () => {
  const folder = await model("bert_mean");
  const lines = [
    '{"code":"one","id":"a"}',
    "{broken",
    "",
    '{"text":"other field"}',
    '{"code":7}',
    "[1]",
    '{"code":"two","id":{"n":1}}',
    Buffer.from([0x22, 0xff, 0x22]),
    '{"code":"three"}',
  ];
  const input = Buffer.concat(lines.flatMap((line) => [Buffer.from(line), Buffer.from("\n")]));
  const args = ["embed", folder, "--input-format=jsonl", "--field=code"];
  const { status, stdout, stderr } = await run(args, input);
  assert.equal(status, 1);
  const [one, two, three] = records(stdout);
  assert.deepEqual([one.line, one.id, two.line, two.id, three.line], [1, "a", 7, { n: 1 }, 9]);
  assert.ok(!("id" in three));
  const vectors = await expected(folder, ["one", "two", "three"]);
  for (const [index, { vector }] of [one, two, three].entries()) assertClose(vector, vectors[index], 1e-6, index);
  for (const number of [2, 4, 5, 6, 8]) assert.match(stderr, new RegExp(`^stdin:${number}: .`, "m"));
  assert.doesNotMatch(stderr, /^stdin:3:/m);
  assert.match(stderr, /^error \[BAD_LINES\]: 5 lines/m);

  const json = await run([...args, "--json"], input);
  const messages = records(json.stderr);
  assert.deepEqual(
    messages.flatMap(({ badLine }) => badLine?.line ?? []),
    [2, 4, 5, 6, 8],
  );
  assert.deepEqual(messages.find(({ summary }) => summary).summary.badLines, 5);
});

test("embed: a line that is too long is skipped without being read into memory", async () => {
  const folder = await model("bert_mean");
  const input = Buffer.concat([Buffer.from("one\n"), Buffer.alloc(17 << 20, "x"), Buffer.from("\ntwo\n")]);
  const { status, stdout, stderr } = await run(["embed", folder], input);
  assert.equal(status, 1);
  assert.deepEqual(
    records(stdout).map(({ line }) => line),
    [1, 3],
  );
  assert.match(stderr, /^stdin:2: longer than/m);
});

test("embed: several files, truncation, and a file for the output", async () => {
  const folder = await model("bert_mean");
  const dir = temporaryFolder();
  writeFileSync(path.join(dir, "a.txt"), "one\ntwo\n");
  writeFileSync(path.join(dir, "b.txt"), `${"word ".repeat(100)}\n`);
  const output = path.join(dir, "out.jsonl");
  writeFileSync(output, "old");
  const args = ["embed", folder, "a.txt", "-", "b.txt", "-o", output, "--json", "--max-tokens=16"];
  const { status, stdout, stderr } = await run(args, "three", { cwd: dir });
  assert.deepEqual([status, stderr], [0, ""]);
  const summary = JSON.parse(stdout);
  assert.deepEqual([summary.texts, summary.truncatedTexts, summary.badLines, summary.output], [4, 1, 0, output]);
  await withEmbedder(folder, { maxTokens: 16 }, ({ fingerprint }) => assert.equal(summary.fingerprint, fingerprint));
  assert.deepEqual(
    records(readFileSync(output, "utf8")).map(({ file, line, truncated }) => [file, line, truncated]),
    [
      ["a.txt", 1, undefined],
      ["a.txt", 2, undefined],
      ["-", 1, undefined],
      ["b.txt", 1, true],
    ],
  );
});

for (const encoding of ["float32", "int8", "binary"]) {
  test(`embed: a .npy file of ${encoding}`, async () => {
    const folder = await model("bert_mean");
    const file = path.join(temporaryFolder(), "vectors.npy");
    const texts = Array.from({ length: 1500 }, (_, index) => `text ${index}`);
    const { status, stdout } = await run(["embed", folder, "-o", file, "-e", encoding], texts.join("\n"));
    assert.deepEqual([status, stdout], [0, ""]);
    const rows = readNpy(file);
    const vectors = await expected(folder, texts, { encoding });
    assert.equal(rows.length, vectors.length);
    for (const [index, row] of rows.entries())
      assertClose(row, vectors[index], encoding === "float32" ? 1e-6 : 1, index);
    assert.deepEqual(readdirSync(path.dirname(file)), ["vectors.npy"]);
  });
}

test("embed: a .npy file of no texts still has a width", async () => {
  const file = path.join(temporaryFolder(), "none.npy");
  assert.equal((await run(["embed", await model("bert_mean"), "-o", file])).status, 0);
  assert.deepEqual(readNpy(file), []);
  assert.match(readFileSync(file, "latin1"), /'shape': \(0, 48\)/);
});

test("embed: an output that is a device or a link is not replaced", POSIX, async () => {
  const folder = await model("bert_mean");
  const { status, stderr } = await run(["embed", folder, "-o", "/dev/null"], "one");
  assert.equal(status, 1);
  assert.match(stderr, /INVALID_OUTPUT/);
  const dir = temporaryFolder();
  writeFileSync(path.join(dir, "real.npy"), "old");
  symlinkSync("real.npy", path.join(dir, "link.npy"));
  assert.equal((await run(["embed", folder, "-o", path.join(dir, "link.npy")], "one")).status, 0);
  assert.equal(readNpy(path.join(dir, "real.npy")).length, 1);
});

test("embed: load options are flags", async () => {
  const folder = await model("nomic_cls");
  const args = ["embed", folder, "--dimensions=8", "--layer-norm", "--pooling=max", "--document-prompt=a b: "];
  const { stdout, stderr } = await run([...args, "--backend=onnx-js", "--max-tokens=20", "--threads=1"], "the text");
  const load = { dimensions: 8, layerNorm: true, pooling: "max", documentPrompt: "a b: ", maxTokens: 20 };
  const [vector] = await expected(folder, ["the text"], { load });
  assertClose(records(stdout)[0].vector, vector, 1e-5, stderr);
  const long = await run(["embed", folder, "--no-normalize", "-q"], "the text");
  const [unscaled] = await expected(folder, ["the text"], { load: { normalize: false } });
  assertClose(records(long.stdout)[0].vector, unscaled, 1e-4, "not normalized");
});

test("embed: the order of many texts is kept, in bounded memory", async () => {
  const folder = await model("bert_mean");
  const { child, ended } = start(["embed", folder, "-q", "--max-tokens=8"]);
  const LINES = 50_000;
  let seen = 0;
  let pending = "";
  child.stdout.removeAllListeners("data").on("data", (text) => {
    const lines = (pending + text).split("\n");
    pending = lines.pop();
    for (const line of lines) assert.ok(line.startsWith(`{"index":${seen},"line":${++seen},`), line.slice(0, 50));
  });
  const sample = () => {
    if (process.platform !== "linux" || seen === 0) return;
    const [, kilobytes] = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, "utf8"));
    samples.push({ seen, megabytes: kilobytes / 1024 });
  };
  const samples = [];
  for (let line = 0; line < LINES; line += 500) {
    const texts = Array.from({ length: 500 }, (_, index) => `number ${line + index}\n`).join("");
    if (!child.stdin.write(texts)) await once(child.stdin, "drain");
    sample();
  }
  child.stdin.end();
  const { status, stderr } = await ended;
  assert.deepEqual([status, stderr, seen], [0, "", LINES]);
  if (process.platform !== "linux") return;
  const peak = (part) => Math.max(...part.map(({ megabytes }) => megabytes));
  const early = peak(samples.filter((one) => one.seen < LINES / 2));
  const late = peak(samples.filter((one) => one.seen >= LINES / 2));
  assert.ok(late < early + 50, `${early} MB in the first half, ${late} MB in the second`);
  assert.ok(late < 400, `${late} MB`);
});

test("embed: stops reading while its output is not read", POSIX, async () => {
  const { child, output, ended } = start(["embed", await model("bert_mean"), "-q"]);
  child.stdout.pause();
  // As much as pipes and read-ahead hold is taken, the rest is not.
  let written = 0;
  const feed = setInterval(() => {
    if (child.stdin.writableNeedDrain) return;
    child.stdin.write(Array.from({ length: 500 }, () => `line ${written++}\n`).join(""));
  }, 1);
  let before = -1;
  await processes.until(async () => {
    const stalled = written === before && written > 0;
    before = written;
    await new Promise((resolve) => setTimeout(resolve, 400));
    return stalled;
  }, "the input to stall");
  clearInterval(feed);
  child.stdin.end();
  child.stdout.resume();
  assert.equal((await ended).status, 0);
  assert.equal(records(output.stdout).length, written);
});

test("embed: ends quietly when the reader of its output goes away", POSIX, async () => {
  const { child, ended, says } = start(["embed", await model("bert_mean"), "-q"]);
  const feed = setInterval(() => child.stdin.writableNeedDrain || child.stdin.write("line\n".repeat(1000)), 1);
  await says(/\n/);
  child.stdout.destroy();
  const { status, signal, stderr } = await ended;
  clearInterval(feed);
  assert.deepEqual([status, signal, stderr], [0, null, ""]);
});

for (const [signalName, exitCode] of [
  ["SIGINT", 130],
  ["SIGTERM", 143],
]) {
  test(`embed: ends cleanly on ${signalName} and leaves no file`, POSIX, async () => {
    const dir = temporaryFolder();
    const { child, output, ended } = start(["embed", await model("bert_mean"), "-o", path.join(dir, "out.npy")]);
    child.stdin.write("line\n".repeat(2000));
    await processes.until(() => readdirSync(dir).some((name) => name.endsWith(".part")), "the partial file");
    child.kill(signalName);
    assert.equal((await ended).status, exitCode, output.stderr);
    assert.match(output.stderr, new RegExp(`^error \\[INTERRUPTED\\]: .*${signalName}\n$`));
    assert.deepEqual(readdirSync(dir), []);
  });
}

test("embed: leaves nothing under the final name when it is killed", async () => {
  const dir = temporaryFolder();
  const target = path.join(dir, "out.npy");
  const args = ["embed", await model("bert_mean"), "-o", target];
  const { child, ended } = start(args);
  child.stdin.write("line\n".repeat(2000));
  await processes.until(() => readdirSync(dir).some((name) => name.endsWith(".part")), "the partial file");
  child.kill("SIGKILL");
  await ended;
  assert.ok(!existsSync(target));
  assert.equal((await run(args, "one\ntwo")).status, 0);
  assert.equal(readNpy(target).length, 2);
});

test("models: a table, and every fact as JSON", async () => {
  const env = { HF_HUB_CACHE: temporaryFolder() };
  const { status, stdout } = await run(["models"], "", { env });
  assert.equal(status, 0);
  for (const { id } of api.KNOWN_MODELS) assert.ok(stdout.includes(id));
  const models = JSON.parse((await run(["models", "--json"], "", { env })).stdout);
  assert.deepEqual(
    models,
    api.KNOWN_MODELS.map((facts) => ({ ...facts, downloaded: [] })),
  );
});

test("a known model's name without its organization is answered with the full name", async () => {
  const cwd = temporaryFolder();
  const { status, stderr } = await run(["embed", "all-MiniLM-L6-v2"], "", { cwd });
  assert.equal(status, 1);
  assert.match(stderr, /^error \[MODEL_NOT_FOUND\]: .* named sentence-transformers\/all-MiniLM-L6-v2\n$/);
  cpSync(await model("bert_mean"), path.join(cwd, "all-MiniLM-L6-v2"), { recursive: true });
  assert.equal((await run(["embed", "all-MiniLM-L6-v2"], "", { cwd })).status, 0, "a folder of that name is loaded");
});

test("pull and embed by a model's name, from a Hub", async (t) => {
  const folder = path.join(ROOT, "tests/fixtures/bert_mean");
  const hub = await startHub({ "org/tiny": { files: filesIn(folder) } });
  t.after(() => hub.close());
  const HF_HUB_CACHE = temporaryFolder();
  const env = { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE, HF_TOKEN: "", HF_HUB_OFFLINE: "" };
  const pulled = await run(["pull", "org/tiny", "--json"], "", { env });
  assert.equal(pulled.status, 0, pulled.stderr);
  const { folder: snapshot } = JSON.parse(pulled.stdout);
  assert.ok(snapshot.startsWith(HF_HUB_CACHE) && existsSync(path.join(snapshot, "model.safetensors")));
  assert.match(pulled.stderr, /^downloading .*model\.safetensors$/m);

  const [vector] = await expected(folder, ["one"]);
  const embedded = await run(["embed", "org/tiny", "--offline", "-q"], "one", { env });
  assert.deepEqual([embedded.status, embedded.stderr], [0, ""]);
  assertClose(records(embedded.stdout)[0].vector, vector, 1e-6, "by name");

  const missing = await run(["pull", "org/none"], "", { env });
  assert.equal(missing.status, 1);
  assert.match(missing.stderr, /^error \[MODEL_NOT_FOUND\]: .*org\/none/);
  const other = await run(["pull", "org/other", "--offline", "--json"], "", { env });
  assert.equal(other.status, 1);
  assert.ok(JSON.parse(other.stderr).error.code);
});

test("export: the graph, float32 and int8", async () => {
  const folder = await changedModel("bert_mean", { "semantic-search-native.onnx": null });
  const plain = await run(["export", folder]);
  assert.deepEqual([plain.status, plain.stderr], [0, ""]);
  assert.equal(plain.stdout, `${path.join(folder, "semantic-search-native.onnx")}\n`);
  const { file, dtype, bytes } = JSON.parse((await run(["export", folder, "--dtype=int8", "--json"])).stdout);
  assert.equal(file, path.join(folder, "semantic-search-native.int8.onnx"));
  assert.deepEqual([dtype, bytes], ["int8", readFileSync(file).length]);
  for (const options of [{}, { dtype: "int8" }]) {
    await withEmbedder(folder, { backend: "onnx-js", ...options }, (embedder) => embedder.embed(["works"]));
  }
});

test("doctor: finds no problem with a valid model, and compares the backends", async () => {
  const folder = await model("nomic_cls");
  const { status, stdout, stderr } = await run(["doctor", folder, "--json", "--measure=0.1"]);
  assert.equal(status, 0, stdout + stderr);
  const { ok, machine, backends, parity, caches, findings } = JSON.parse(stdout);
  assert.equal(ok, true);
  assert.deepEqual(
    [machine.platform, machine.arch, machine.node],
    [process.platform, process.arch, process.versions.node],
  );
  const byName = Object.fromEntries(backends.map((backend) => [backend.backend, backend]));
  await withEmbedder(folder, {}, ({ dimension, fingerprint }) => {
    for (const name of ["onnx", "cpu", "onnx-js"]) {
      assert.deepEqual(
        [byName[name].works, byName[name].dimension, byName[name].fingerprint],
        [true, dimension, fingerprint],
      );
      assert.ok(byName[name].textsPerSecond > 0 && byName[name].queryP50Ms > 0);
      assert.ok(byName[name].aloneDifference <= 1e-5);
    }
  });
  for (const name of ["cpu", "onnx-js"]) {
    const compared = parity.find(({ backend, against }) => backend === name && against === "onnx");
    assert.ok(compared.isWithinTolerance && compared.maxDifference <= 1e-5 && compared.minCosine > 0.99999);
  }
  assert.deepEqual(machine.kernels, loadAddon().cpuKernels());
  assert.equal(caches.length, 1);
  assert.deepEqual(
    findings.filter(({ isProblem }) => isProblem),
    [],
  );
});

test("doctor: uses a tiny model if none is given, on the same backends", async () => {
  const { status, stdout, stderr } = await run(["doctor"]);
  assert.equal(status, 0, stdout + stderr);
  for (const name of ["onnx", "cpu", "onnx-js"]) assert.match(stdout, new RegExp(`^${name} +works`, "m"));
  assert.match(stdout, /^kernels +[a-z0-9-]+: f32 .*int8/m);
  assert.match(stdout, /differs from onnx by/);
});

test("doctor: the commands that it suggests can be pasted into a shell", POSIX, async () => {
  const folder = path.join(temporaryFolder(), "it's a model");
  cpSync(await changedModel("bert_mean", { "semantic-search-native.onnx": null }), folder, { recursive: true });
  const { stdout } = await run(["doctor", folder, "--measure=0", "--json"]);
  const { fix } = JSON.parse(stdout).findings.find(({ what }) => what.includes("JavaScript fallback"));
  assert.ok(!existsSync(path.join(folder, "semantic-search-native.onnx")));
  const bin = temporaryFolder();
  const command = `#!/bin/sh\nexec "${process.execPath}" "${MAIN}" "$@"\n`;
  writeFileSync(path.join(bin, "semantic-search-native"), command, { mode: 0o755 });
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` };
  const { status, stderr } = await processes.run("sh", ["-c", fix], { env });
  assert.equal(status, 0, stderr);
  assert.ok(existsSync(path.join(folder, "semantic-search-native.onnx")));
});

test("doctor: names each problem with its fix, and exits with 1", async () => {
  const problems = async (args, env) => {
    const { status, stdout, stderr } = await run(["doctor", ...args, "--measure=0", "--json"], "", { env });
    assert.equal(status, 1, stdout);
    assert.equal(JSON.parse(stderr).error.code, "PROBLEMS_FOUND");
    const { ok, findings } = JSON.parse(stdout);
    assert.equal(ok, false);
    return findings.filter(({ isProblem }) => isProblem);
  };
  const damaged = await changedModel("bert_mean", { "config.json": "{" });
  const [wrongModel, ...others] = await problems([damaged]);
  assert.match(wrongModel.what, /config\.json/);
  assert.match(wrongModel.fix, /fetch/);
  assert.deepEqual(others, [], "one problem, not one per backend");

  const folder = await model("bert_mean");
  const library = path.join(temporaryFolder(), "nowhere.so");
  const noRuntime = await problems([folder], { ORT_DYLIB_PATH: library });
  assert.ok(noRuntime.some(({ what, fix }) => what.includes("ORT_DYLIB_PATH") && fix.includes("unset")));
  assert.ok(
    noRuntime.some(({ what, fix }) => what.includes("the addon does not work") && fix.includes("ORT_DYLIB_PATH")),
  );

  const blocked = path.join(temporaryFolder(), "file");
  writeFileSync(blocked, "");
  const noCache = await problems([folder], {
    SEMANTIC_SEARCH_BACKEND: "fast",
    HF_HUB_CACHE: path.join(blocked, "x"),
  });
  assert.ok(noCache.some(({ what }) => what.includes('SEMANTIC_SEARCH_BACKEND is "fast"')));
  assert.ok(noCache.some(({ fix }) => fix.includes("HF_HUB_CACHE")));

  // The exported graph belongs to other weights.
  const stale = await changedModel("bert_mean", {
    "semantic-search-native.onnx": readFileSync(path.join(await model("nomic_cls"), "semantic-search-native.onnx")),
  });
  assert.ok((await problems([stale])).some(({ what }) => what.includes("JavaScript fallback")));
});

test("the packed package has what its command needs", () => {
  const { bin, files } = JSON.parse(readFileSync(path.join(ROOT, "package.json"), "utf8"));
  const main = bin["semantic-search-native"];
  assert.ok(files.includes(main.split("/")[0]));
  assert.match(readFileSync(path.join(ROOT, main), "utf8"), /^#!\/usr\/bin\/env node\n/);
});
