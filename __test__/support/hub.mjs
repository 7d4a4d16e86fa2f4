/** What the tests of downloads share: a Hub with one model, a cache to download into, and what should be in it then. */

import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { after } from "node:test";
import { filesIn, startHub } from "./hub_server.mjs";
import { ROOT, temporaryFolder } from "./models.mjs";
import { run, start } from "./processes.mjs";

export const ID = "org/model";
export const FIXTURE = filesIn(path.join(ROOT, "tests/fixtures/bert_mean"));
export const WEIGHTS = FIXTURE["model.safetensors"];
/** What loading reads of the fixture. */
export const NEEDED = [
  "1_Pooling/config.json",
  "config.json",
  "config_sentence_transformers.json",
  "model.safetensors",
  "modules.json",
  "sentence_bert_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
];
/** What repositories have besides. */
const OTHERS = {
  ".gitattributes": Buffer.from("*.safetensors filter=lfs\n"),
  "README.md": Buffer.from("# A model\n"),
  "pytorch_model.bin": Buffer.alloc(60_000, 1),
  "tf_model.h5": Buffer.alloc(60_000, 2),
  "openvino/openvino_model.bin": Buffer.alloc(60_000, 3),
  "onnx/model.onnx": Buffer.alloc(60_000, 4),
  "onnx/model.onnx_data": Buffer.alloc(60_000, 5),
  "onnx/model_fp16.onnx": Buffer.alloc(60_000, 6),
};

// The environment of whoever runs the tests must not matter, in this process and in those it starts.
for (const name of Object.keys(process.env)) {
  if (/^(HF_|HUGGING|TRANSFORMERS_OFFLINE|(https?|all|no)_proxy$)/i.test(name)) delete process.env[name];
}
process.env.HF_HOME = temporaryFolder();

const servers = [];
after(() => {
  for (const server of servers) server.close();
});

/** Has a server closed when the tests of the file are done. */
export function track(server) {
  servers.push(server);
  return server;
}

/** A certificate for servers of this machine and the file that has it; `undefined` without openssl. */
export async function localCertificate() {
  const [key, file] = ["key.pem", "cert.pem"].map((name) => path.join(temporaryFolder(), name));
  const hosts = "subjectAltName=IP:127.0.0.1,DNS:localhost";
  const made = await run("openssl", [
    ...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"],
    // Deno takes no certificate of an authority for that of a server.
    ...["-subj", "/CN=localhost", "-addext", hosts, "-addext", "basicConstraints=critical,CA:FALSE"],
    ...["-keyout", key, "-out", file],
  ]).catch(() => ({}));
  if (made.status !== 0) return undefined;
  return { tls: { key: readFileSync(key, "utf8"), cert: readFileSync(file, "utf8") }, file };
}

/**
 * A Hub with one model, and options of `pull` for it with a cache of its own.
 *
 * @param {{ [file: string]: Buffer | null }} [changes] to the model's files; `null` removes one
 * @param {{ id?: string, commit?: string, branches?: { [name: string]: string }, tls?: object, prefix?: string }} [settings]
 */
export async function hubWith(changes = {}, { id = ID, commit, branches, ...server } = {}) {
  const files = { ...FIXTURE, ...OTHERS, ...changes };
  for (const name of Object.keys(files)) if (files[name] === null) delete files[name];
  const model = { files, ...(commit && { commit }), ...(branches && { branches }) };
  const hub = track(await startHub({ [id]: model }, server));
  return { hub, options: { endpoint: hub.endpoint, cacheFolder: path.join(temporaryFolder(), "hub"), token: false } };
}

/** All files below a folder, links included, with `/`. */
export function tree(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => path.relative(folder, path.join(entry.parentPath ?? entry.path, entry.name)))
    .map((name) => name.split(path.sep).join("/"))
    .sort();
}

/** The model's folder in the cache. */
export const repository = ({ cacheFolder }) => path.join(cacheFolder, "models--org--model");

/** The names of files in the cache, complete and partial ones. */
export function blobs(options) {
  const folder = path.join(repository(options), "blobs");
  return existsSync(folder) ? readdirSync(folder) : [];
}

/** The names of partial files in the cache. */
export const parts = (options) => blobs(options).filter((name) => name.includes("incomplete"));

export function assertComplete(folder, files = FIXTURE) {
  for (const name of NEEDED) assert.deepEqual(readFileSync(path.join(folder, name)), files[name], name);
}

/**
 * Starts `pull` in a process of its own. `result` resolves to `{ folder }`, `{ code, message }`, or `{ signal }` where the
 * process is killed.
 *
 * @param {(file: string, args: string[]) => [string, string[]]} [wrap] the command to start instead
 */
export function pulling(options, env = {}, wrap = (file, args) => [file, args]) {
  const { onProgress, ...rest } = options;
  const body = `require("./dist/embedder.js").pull(${JSON.stringify(ID)}, ${JSON.stringify(rest)})
    .then((folder) => console.log(JSON.stringify({ folder })), ({ code, message }) => console.log(JSON.stringify({ code, message })));`;
  const { child, ended } = start(...wrap(process.execPath, ["-e", body]), {
    cwd: ROOT,
    env: { ...process.env, ...env },
  });
  const result = ended.then(({ status, signal, stdout, stderr }) => {
    if (signal) return { signal };
    assert.deepEqual([status, stderr], [0, ""], stdout);
    return JSON.parse(stdout);
  });
  return { child, result };
}
