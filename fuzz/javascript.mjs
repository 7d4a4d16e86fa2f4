#!/usr/bin/env node
/**
 * Changes what the package reads (model folders, answers of a Hub, requests to `serve`) at random, with a fixed seed, and
 * checks its promises: no crash, no hang, errors with a code (or a status from 400 to 499), vectors of finite numbers,
 * and the same reading of a model folder and of a text by the addon and the JavaScript fallback.
 *
 *   node fuzz/javascript.mjs --minutes=10 --seed=1 [--target=model|hub|serve|readers|tokens]
 *   node fuzz/javascript.mjs --target=model --seed=1 --case=17      # one case again; its folder is kept
 */

import { fork } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as http from "node:http";
import { createRequire } from "node:module";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { start } from "../__test__/support/command_line.mjs";
import { filesIn, startHub } from "../__test__/support/hub_server.mjs";
import { Readers } from "../__test__/support/readers.mjs";
import { Tokens } from "../__test__/support/tokens.mjs";
import { Random } from "../scripts/random.mjs";
import { decodeSafetensors, encodeSafetensors } from "../scripts/safetensors.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const api = createRequire(import.meta.url)("../dist/embedder.js");
const FIXTURES = ["bert_mean", "nomic_cls"];
const BACKENDS = ["onnx", "onnx-js"];
/** Generous: what takes longer hangs. */
const CASE_TIMEOUT_MS = 60_000;
const TEXTS = ["a text", "", "word ".repeat(700), "naïve 日本語 🚀 \ud800"];

const SCALARS = [
  ...[
    null,
    true,
    false,
    0,
    -0,
    1,
    -1,
    2,
    7,
    0.5,
    1e-320,
    2 ** 31 - 1,
    2 ** 31,
    2 ** 32,
    2 ** 53,
    -(2 ** 53),
    1e18,
    1e308,
  ],
  ...[
    "",
    "a",
    "../..",
    "/etc/passwd",
    "\0",
    "\u001b[2J",
    "\ud800",
    "__proto__",
    "x".repeat(10_000),
    "float32",
    "[SEP]",
  ],
];

/** Changes a JSON value in some places. */
function changedJson(random, value) {
  const holder = { root: structuredClone(value) };
  for (let changes = 1 + random.below(3); changes > 0; changes--) {
    let [parent, key] = [holder, "root"];
    // Mostly deep inside, since what lies at the top is checked first.
    while (typeof parent[key] === "object" && parent[key] !== null && random.next() < 0.8) {
      const keys = Object.keys(parent[key]);
      if (keys.length === 0) break;
      [parent, key] = [parent[key], random.of(keys)];
    }
    const kind = random.below(6);
    if (kind === 0 && parent !== holder) Array.isArray(parent) ? parent.splice(Number(key), 1) : delete parent[key];
    else if (kind === 1) parent[key] = [parent[key], parent[key]];
    else if (kind === 2) parent[key] = { [random.of(["type", "a", "__proto__"])]: parent[key] };
    else if (kind === 3 && typeof parent[key] === "number") parent[key] += random.of([1, -1, 0.5, 2 ** 31, -(2 ** 31)]);
    else if (kind === 4 && Array.isArray(parent[key])) parent[key] = parent[key].concat(parent[key]);
    else parent[key] = random.of(SCALARS);
  }
  return holder.root;
}

/** Changes some bytes: flipped, cut off, left out, put in. */
function changedBytes(random, bytes) {
  let changed = Buffer.from(bytes);
  for (let changes = 1 + random.below(4); changes > 0 && changed.length > 0; changes--) {
    // Formats say at their beginning what they are.
    const at = random.below(random.next() < 0.5 ? Math.min(changed.length, 512) : changed.length);
    const kind = random.below(5);
    if (kind === 0) changed = changed.subarray(0, at);
    else if (kind === 1)
      changed = Buffer.concat([changed.subarray(0, at), changed.subarray(at + 1 + random.below(16))]);
    else if (kind === 2)
      changed = Buffer.concat([
        changed.subarray(0, at),
        Buffer.alloc(1 + random.below(16), random.below(256)),
        changed.subarray(at),
      ]);
    else if (kind === 3) changed[at] = random.of([0, 1, 0x7f, 0x80, 0xff]);
    else changed[at] ^= 1 << random.below(8);
  }
  return changed;
}

/** A safetensors file whose header is still one, and says something else. */
function changedSafetensors(random, bytes) {
  const { header, data } = decodeSafetensors(bytes);
  return encodeSafetensors({ header: changedJson(random, header), headerLength: 0, data });
}

function changedFile(random, name, bytes) {
  if (random.next() < 0.2) return changedBytes(random, bytes);
  if (name.endsWith(".json"))
    return Buffer.from(JSON.stringify(changedJson(random, JSON.parse(bytes.toString()))) ?? "");
  return name.endsWith(".safetensors") ? changedSafetensors(random, bytes) : changedBytes(random, bytes);
}

/** The object that a text is, if it is one. The rest of a file of weights may begin like one. */
function jsonOf(text) {
  try {
    return text.startsWith("{") ? JSON.parse(text) : undefined;
  } catch {
    return undefined;
  }
}

/** What is wrong with how something failed; `undefined` where it failed as it should. */
function flawOf(error) {
  const { name, code, message } = error ?? {};
  if (!/^(EmbedderError|AbortError)$/.test(name) || typeof code !== "string")
    return `an error without a code: ${error?.stack ?? error}`;
  return typeof message === "string" && message !== "" ? undefined : `${code} without a message`;
}

function areFinite(vectors) {
  return vectors.every((vector) => vector.length > 0 && vector.every(Number.isFinite));
}

/** In a process of its own: loads a folder and embeds. */
async function tryModel({ folder, backend }) {
  let embedder;
  try {
    embedder = await api.Embedder.load(folder, { backend, threads: 1 });
    const vectors = [...(await embedder.embed(TEXTS)), await embedder.embedQuery("a query")];
    return areFinite(vectors) ? undefined : "vectors that are not finite";
  } catch (error) {
    return flawOf(error);
  } finally {
    await embedder?.close();
  }
}

/** Model folders, each loaded by every backend in a process that may crash. */
class ModelTarget {
  #scratch = mkdtempSync(path.join(os.tmpdir(), "semantic-search-fuzz-"));
  #child;
  #folders = new Map();

  async prepare() {
    for (const name of FIXTURES) {
      const folder = path.join(this.#scratch, name);
      cpSync(path.join(ROOT, "tests/fixtures", name), folder, { recursive: true });
      await api.exportOnnx(folder);
      this.#folders.set(name, { folder, files: filesIn(folder) });
    }
  }

  async run(random, index) {
    const { folder: original, files } = this.#folders.get(random.of(FIXTURES));
    const folder = path.join(this.#scratch, `case-${index}`);
    cpSync(original, folder, { recursive: true });
    const names = Object.keys(files).filter((name) => !/README|vocab\.txt/.test(name));
    const changed = Array.from({ length: random.next() < 0.8 ? 1 : 2 }, () => random.of(names));
    for (const name of changed) writeFileSync(path.join(folder, name), changedFile(random, name, files[name]));
    for (const backend of BACKENDS) {
      const flaw = await this.#ask({ folder, backend });
      if (flaw) return `${backend}, ${changed.join(" and ")} in ${folder}: ${flaw}`;
    }
    rmSync(folder, { recursive: true });
    return undefined;
  }

  async #ask(request) {
    this.#child ??= fork(fileURLToPath(import.meta.url), ["--child"], { stdio: ["ignore", "pipe", "pipe", "ipc"] });
    const child = this.#child;
    let said = "";
    for (const stream of [child.stdout, child.stderr])
      stream.removeAllListeners("data").on("data", (text) => (said += text));
    const outcome = await new Promise((resolve) => {
      const timer = setTimeout(() => resolve(`no end within ${CASE_TIMEOUT_MS / 1000} s`), CASE_TIMEOUT_MS);
      const settle = (flaw) => {
        clearTimeout(timer);
        child.removeAllListeners("message").removeAllListeners("exit");
        resolve(flaw);
      };
      child.once("message", ({ flaw }) => settle(flaw));
      child.once("exit", (code, signal) => settle(`the process ended: ${signal ?? code} ${said}`));
      child.send(request);
    });
    if (outcome !== undefined) {
      child.kill("SIGKILL");
      this.#child = undefined;
    }
    return outcome ?? (said.trim() === "" ? undefined : `it wrote: ${said}`);
  }

  async close(keep) {
    this.#child?.kill("SIGKILL");
    if (!keep) rmSync(this.#scratch, { recursive: true, force: true });
  }
}

/** Answers of a Hub: its list of files, files, statuses and headers. */
class HubTarget {
  #scratch = mkdtempSync(path.join(os.tmpdir(), "semantic-search-fuzz-"));
  #files = filesIn(path.join(ROOT, "tests/fixtures/bert_mean"));

  async prepare() {
    process.env.HF_HOME = this.#scratch;
  }

  async run(random, index) {
    const hub = await startHub({ "org/model": { files: this.#files } });
    const folder = path.join(this.#scratch, String(index));
    mkdirSync(folder);
    const options = { endpoint: hub.endpoint, cacheFolder: path.join(folder, "a/b/hub"), token: false };
    const change = (host, pattern) =>
      hub.fault(
        host,
        pattern,
        (response, { normal }) => {
          const { writeHead, end } = response;
          response.writeHead = (status, headers = {}) => {
            const { "content-length": _, ...kept } = headers;
            const changed = random.next() < 0.1 ? changedJson(random, kept) : kept;
            const isHeader = (value) => /^(string|number)$/.test(typeof value) && !/[^\t\x20-\x7e]/.test(String(value));
            const entries = Object.entries(changed ?? {}).filter(
              ([name, value]) => /^[\w-]+$/.test(name) && isHeader(value),
            );
            return writeHead.call(
              response,
              random.next() < 0.05 ? random.of([204, 206, 400, 404, 418]) : status,
              Object.fromEntries(entries),
            );
          };
          response.end = (body) =>
            end.call(response, body && random.next() < 0.9 ? this.#changedBody(random, body) : body);
          normal();
        },
        1 + random.below(3),
      );
    change("hub", random.next() < 0.6 ? /api/ : /resolve/);
    if (random.next() < 0.3) change("cdn", /./);
    const signal = AbortSignal.timeout(CASE_TIMEOUT_MS);
    try {
      const snapshot = await api.pull("org/model", { ...options, signal });
      await api.pull("org/model", { ...options, offline: true, verify: true });
      for (const [name, bytes] of Object.entries(this.#files)) {
        const file = path.join(snapshot, name);
        // A list that lost a file is not wrong for that.
        const found = existsSync(file) ? readFileSync(file) : bytes;
        if (!found.equals(bytes)) return `${name} has other bytes`;
      }
    } catch (error) {
      if (signal.aborted) return `no end within ${CASE_TIMEOUT_MS / 1000} s`;
      const flaw = flawOf(error);
      if (flaw) return flaw;
    } finally {
      hub.close();
    }
    const outside = readdirSync(folder, { recursive: true })
      .map(String)
      .filter((name) => !/^a(\/b(\/hub(\/.*)?)?)?$/.test(name.split(path.sep).join("/")));
    rmSync(folder, { recursive: true });
    return outside.length > 0 ? `written outside of the cache: ${outside}` : undefined;
  }

  #changedBody(random, body) {
    const json = jsonOf(body.toString());
    if (json === undefined || random.next() < 0.2) return changedBytes(random, Buffer.from(body));
    return JSON.stringify(changedJson(random, json)) ?? "";
  }

  async close() {
    rmSync(this.#scratch, { recursive: true, force: true });
  }
}

const BODIES = [
  { model: "m", input: "a text" },
  { model: "m", input: ["a", "b", "a"], input_type: "query", encoding_format: "base64", user: "u" },
  { model: "m", input: ["word ".repeat(600)], truncation: false, dimensions: 16 },
  { model: "m:query", input: "a query" },
];
const OLLAMA_BODIES = [
  { model: "m:query", input: "a query", truncate: true, keep_alive: "5m", options: {} },
  { model: "m", input: ["a", "word ".repeat(600), "a"], truncate: false, dimensions: 16 },
];
/** Ids of the fixture's vocabulary, and some that are none. */
const TOKENS = { below: 1411, none: [1411, 2 ** 32 - 1, 2 ** 32, -1, 0.5] };

/** Token ids as `input`: of one text, or of several. */
function tokenBody(random) {
  const id = () => (random.next() < 0.005 ? random.of(TOKENS.none) : random.below(TOKENS.below));
  const ids = () => Array.from({ length: random.below(random.next() < 0.1 ? 700 : 12) }, id);
  const input = random.next() < 0.3 ? ids() : Array.from({ length: random.below(5) }, ids);
  return { model: "m", input, truncation: random.next() < 0.8, input_type: random.of(["query", "document"]) };
}

/** Requests to `serve`. */
class ServeTarget {
  #server;
  #url;

  async prepare() {
    const folder = path.join(ROOT, "tests/fixtures/bert_mean");
    this.#server = start([
      "serve",
      folder,
      "--port",
      "0",
      "--backend",
      "onnx",
      "--model-name",
      "m",
      "--matryoshka",
      "--no-layer-norm",
    ]);
    const [, url] = await this.#server.says(/^(http:\S+)\n/);
    this.#url = new URL(url);
  }

  async run(random) {
    const isOllama = random.next() < 0.2;
    const isOfTokens = !isOllama && random.next() < 0.4;
    const sound = isOfTokens ? tokenBody(random) : random.of(isOllama ? OLLAMA_BODIES : BODIES);
    // Ids as they are get far, too.
    const changed = isOfTokens && random.next() < 0.5 ? sound : changedJson(random, sound);
    const body = JSON.stringify(changed) ?? "";
    const bytes = random.next() < 0.3 ? changedBytes(random, Buffer.from(body)) : Buffer.from(body);
    const { status, text } = await this.#post(isOllama ? "/api/embed" : "/v1/embeddings", bytes);
    const flaw = (what) =>
      `${what} (${status} ${text.slice(0, 300)}) for ${JSON.stringify(bytes.toString()).slice(0, 300)}`;
    if (status !== 200 && !(status >= 400 && status < 500)) return flaw("another status");
    let answer;
    try {
      answer = JSON.parse(text);
    } catch {
      return flaw("no JSON");
    }
    if (status !== 200) {
      const message = isOllama ? answer.error : answer.error?.message;
      return typeof message === "string" ? undefined : flaw("an error of another form");
    }
    if (isOllama) return areFinite(answer.embeddings) ? undefined : flaw("vectors that are not finite");
    const vectors = answer.data.map(({ embedding }) => {
      return typeof embedding === "string"
        ? new Float32Array(new Uint8Array(Buffer.from(embedding, "base64")).buffer)
        : embedding;
    });
    return areFinite(vectors) ? undefined : flaw("vectors that are not finite");
  }

  #post(route, body) {
    const { hostname, port } = this.#url;
    return new Promise((resolve, reject) => {
      const headers = { "content-type": "application/json", "content-length": body.length };
      const request = http.request(
        { hostname, port, path: route, method: "POST", headers, timeout: CASE_TIMEOUT_MS },
        (response) => {
          let text = "";
          response.setEncoding("utf8").on("data", (piece) => (text += piece));
          response.on("end", () => resolve({ status: response.statusCode, text }));
        },
      );
      request.on("timeout", () => request.destroy(new Error(`no answer within ${CASE_TIMEOUT_MS / 1000} s`)));
      request.on("error", reject);
      request.end(body);
    });
  }

  async close() {
    this.#server.child.kill("SIGTERM");
    const { status, signal, stderr } = await this.#server.ended;
    if (status !== 0) throw new Error(`serve ended with ${signal ?? status}: ${stderr}`);
  }
}

export const TARGETS = { model: ModelTarget, hub: HubTarget, serve: ServeTarget, readers: Readers, tokens: Tokens };

/**
 * Runs cases of a target until there were `cases` of them or `minutes` are over. Case n of a seed is always the same.
 *
 * @param {{ target: keyof TARGETS, seed: number, cases?: number, minutes?: number, first?: number }} options
 * @returns {Promise<{ cases: number, flaws: string[] }>}
 */
export async function fuzz({
  target,
  seed,
  cases = Number.POSITIVE_INFINITY,
  minutes = Number.POSITIVE_INFINITY,
  first = 0,
}) {
  const subject = new TARGETS[target]();
  const end = performance.now() + minutes * 60_000;
  const flaws = [];
  let index = first;
  try {
    await subject.prepare();
    for (; index < first + cases && performance.now() < end; index++) {
      const flaw = await subject.run(new Random(target, seed, index), index).catch((error) => `${error.stack}`);
      if (flaw) flaws.push(`--target=${target} --seed=${seed} --case=${index}: ${flaw}`);
    }
  } finally {
    await subject.close(flaws.length > 0);
  }
  return { cases: index - first, flaws };
}

async function main() {
  const text = { type: "string" };
  const { values } = parseArgs({ options: { minutes: text, seed: text, target: text, case: text } });
  const targets = values.target === undefined ? Object.keys(TARGETS) : [values.target];
  const seed = Number(values.seed ?? 1);
  const extent =
    values.case === undefined
      ? { minutes: Number(values.minutes ?? 3) / targets.length }
      : { first: Number(values.case), cases: 1 };
  for (const target of targets) {
    const { cases, flaws } = await fuzz({ target, seed, ...extent });
    console.log(`${target}: ${cases} cases, ${flaws.length} flaws`);
    for (const flaw of flaws) console.log(flaw);
    if (flaws.length > 0) process.exitCode = 1;
  }
}

if (process.argv[2] === "--child") {
  process.on("message", async (request) => process.send({ flaw: await tryModel(request) }));
} else if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main();
}
