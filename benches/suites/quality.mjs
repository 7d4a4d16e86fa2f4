/**
 * How well each configuration retrieves, on real code with the real starter model.
 *
 * Queries are docstrings of Python's standard library, documents the functions without them (`../texts/pairs.py`); the
 * only right answer to a query is its own function. A configuration is a row of the table: options for `Embedder.load`, and
 * how the vectors are converted before they are compared. All are measured against the first row.
 *
 * The engine's suite runs the rows that have bounds. `node benches/suites/quality.mjs` runs all and writes
 * `results/QUALITY.md`; the exit code is 1 if one misses its bounds. Its options: --slow (also what needs a GPU,
 * without one) --pairs=1000 --package=<folder with dist and the addon> --python=python3 --out=<folder>
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { installStarterModel, ROOT } from "../../scripts/setup.mjs";
import { commit } from "../report/provenance.mjs";
import { cosine, dot, sum } from "../report/statistics.mjs";

const FILE = fileURLToPath(import.meta.url);
const PAIRS = fileURLToPath(new URL("../texts/pairs.py", import.meta.url));
const RESULTS = fileURLToPath(new URL("../results", import.meta.url));
/** A rank beyond this counts as not found. */
const DEPTH = 10;

/**
 * @typedef {object} Configuration
 * @property {string} name
 * @property {object} load options of `Embedder.load`
 * @property {"int8" | "binary"} [encoding] of `embed`
 * @property {(vector: Float32Array | Int8Array | Uint8Array) => ArrayLike<number>} [numbers] the vector as numbers to compare by
 * dot product
 * @property {boolean} [needsGpu] takes a second per text without one, so it is skipped unless slow rows are wanted
 * @property {{ mrr: number, cosine: number }} [bounds] least MRR relative to the first row; least cosine of a vector to its
 * own in the first row
 */

/** @type {Configuration[]} */
const CONFIGURATIONS = [
  { name: "float32", load: { backend: "onnx", dtype: "f32" } },
  { name: "bfloat16", load: { backend: "cpu", dtype: "bf16" }, bounds: { mrr: 0.995, cosine: 0.9995 } },
  { name: "int8", load: { backend: "cpu", dtype: "int8" }, bounds: { mrr: 0.995, cosine: 0.98 } },
  { name: "float16 (MLX)", load: { backend: "mlx", dtype: "f16" }, needsGpu: true },
  { name: "vectors stored as int8", load: { backend: "onnx" }, encoding: "int8" },
  { name: "vectors stored as bits", load: { backend: "onnx" }, encoding: "binary", numbers: signs },
  { name: "192 of 384 dimensions (not trained for it)", load: { backend: "onnx", dimensions: 192 } },
  { name: "96 of 384 dimensions (not trained for it)", load: { backend: "onnx", dimensions: 96 } },
  { name: "pooling done wrong: cls instead of mean", load: { backend: "onnx", pooling: "cls" } },
];

/** Bits as 1 and -1, whose dot product counts the equal ones. */
function signs(bits) {
  return Float32Array.from({ length: 8 * bits.length }, (_, i) => (bits[i >> 3] & (0x80 >> (i & 7)) ? 1 : -1));
}

function output(program, args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8", maxBuffer: 1 << 30 });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")} failed: ${error ?? stderr}`);
  return stdout;
}

/** The vectors of a configuration; `null` if it needs what this machine does not have. */
async function embed(Embedder, model, pairs, { load, encoding, numbers = (vector) => vector, needsGpu }, withSlow) {
  let embedder;
  try {
    embedder = await Embedder.load(model, load);
  } catch (error) {
    if (needsGpu && error.code === "BACKEND_UNAVAILABLE") return null;
    // Not every processor has instructions for bfloat16.
    if (load.dtype === "bf16" && error.code === "INVALID_ARGUMENT") return null;
    throw error;
  }
  try {
    if (needsGpu && !embedder.isGpu && !withSlow) return null;
    const vectors = async (texts, kind) => (await embedder.embed(texts, { kind, encoding })).map(numbers);
    return {
      documents: await vectors(pairs.map(({ code }) => code)),
      queries: await vectors(
        pairs.map(({ query }) => query),
        "query",
      ),
    };
  } finally {
    await embedder.close();
  }
}

/** Ranks count from 1. A document that scores the same as the right one is put before it. */
function retrieve({ queries, documents }) {
  const ranks = queries.map((query, index) => {
    const right = dot(query, documents[index]);
    return documents.reduce((rank, document, other) => rank + (other !== index && dot(query, document) >= right), 1);
  });
  const found = ranks.filter((rank) => rank <= DEPTH);
  return {
    mrr: sum(found.map((rank) => 1 / rank)) / ranks.length,
    recall: found.length / ranks.length,
  };
}

/** `null` if the vectors have another length than those of the first row. */
function cosines(ours, reference) {
  if (ours.queries[0].length !== reference.queries[0].length) return null;
  const all = ["queries", "documents"].flatMap((side) =>
    ours[side].map((vector, index) => cosine(vector, reference[side][index])),
  );
  return { least: Math.min(...all), mean: sum(all) / all.length };
}

/**
 * @typedef {object} Row
 * @property {string} name of the configuration
 * @property {number} mrr
 * @property {number} recall
 * @property {{ least: number, mean: number } | null} cosine
 * @property {boolean} [passed] its bounds, where it has some
 */

/**
 * @param {object} settings
 * @param {number} settings.pairs questions and the functions that answer them
 * @param {string} settings.package the folder of the build that is measured
 * @param {string} [settings.python]
 * @param {boolean} [settings.onlyBounded] only the first row and those that have bounds
 * @param {boolean} [settings.withSlow] also what needs a GPU, without one
 * @param {(row: Row) => void} [settings.onRow]
 * @returns {Promise<{ rows: Row[], count: number, digest: string }>} `count` of the pairs that were found, and the SHA-256
 *   of them
 */
export async function measureQuality({ python = "python3", onlyBounded = false, withSlow = false, ...settings }) {
  const model = await installStarterModel();
  const { Embedder } = createRequire(import.meta.url)(path.join(settings.package, "dist/embedder.js"));
  const jsonLines = output(python, [PAIRS, String(settings.pairs)]);
  const pairs = jsonLines.trimEnd().split("\n").map(JSON.parse);
  const rows = [];
  let reference;
  for (const [index, configuration] of CONFIGURATIONS.entries()) {
    const { name, bounds } = configuration;
    if (onlyBounded && index > 0 && !bounds) continue;
    const vectors = await embed(Embedder, model, pairs, configuration, withSlow);
    if (!vectors) continue;
    reference ??= vectors;
    const row = { name, ...retrieve(vectors), cosine: cosines(vectors, reference) };
    if (bounds) row.passed = row.mrr >= bounds.mrr * rows[0].mrr && row.cosine.least >= bounds.cosine;
    rows.push(row);
    settings.onRow?.(row);
  }
  return { rows, count: pairs.length, digest: createHash("sha256").update(jsonLines).digest("hex") };
}

/** The rows as a table in Markdown, a line each. */
export function qualityTable(rows) {
  const lines = rows.map(({ name, mrr, recall, cosine, passed }) =>
    [
      name,
      mrr.toFixed(4),
      `${((mrr / rows[0].mrr - 1) * 100).toFixed(2)} %`,
      recall.toFixed(4),
      cosine?.least.toFixed(4) ?? "",
      cosine?.mean.toFixed(5) ?? "",
      passed === undefined ? "" : passed ? "kept" : "**missed**",
    ].join(" | "),
  );
  return [
    `| configuration | MRR@${DEPTH} | difference | Recall@${DEPTH} | least cosine | mean cosine | bounds |`,
    "|---|--:|--:|--:|--:|--:|---|",
    ...lines.map((line) => `| ${line} |`),
  ];
}

function report({ rows, count, digest }, command, python) {
  const bounds = CONFIGURATIONS.filter(({ bounds }) => bounds).map(
    ({ name, bounds }) => `${name}: MRR ≥ ${bounds.mrr} of the first row's, every cosine ≥ ${bounds.cosine}`,
  );
  return `# Quality of retrieval

\`${command}\`

- Task: ${count} docstrings of the standard library of ${output(python, ["--version"]).trim()} (SHA-256 of the pairs ${digest.slice(0, 12)}…); each has its own function, without the docstring, as the one right answer among all
- Model: all-MiniLM-L6-v2, real weights; texts are cut at its own limit
- Machine: ${os.cpus().length} × ${os.cpus()[0].model.trim()}, ${os.type()} ${os.arch()}; Node.js ${process.version}; commit ${commit()}
- Cosine: of each vector, queries and documents, to its own in the first row
- Bounds: ${bounds.join("; ")}

${qualityTable(rows).join("\n")}
`;
}

async function main() {
  const { values } = parseArgs({
    options: {
      slow: { type: "boolean", default: false },
      pairs: { type: "string", default: "1000" },
      package: { type: "string", default: ROOT },
      python: { type: "string", default: "python3" },
      out: { type: "string", default: RESULTS },
    },
  });
  const { slow: withSlow, python, out } = values;
  const onRow = ({ name, mrr, cosine }) =>
    console.log(`${name}: MRR@${DEPTH} ${mrr.toFixed(4)}, least cosine ${cosine?.least.toFixed(4) ?? "-"}`);
  const outcome = await measureQuality({ ...values, python, withSlow, onRow });
  mkdirSync(out, { recursive: true });
  const command = `node benches/suites/quality.mjs${withSlow ? " --slow" : ""}`;
  writeFileSync(path.join(out, "QUALITY.md"), report(outcome, command, python));
  if (outcome.rows.some(({ passed }) => passed === false)) process.exitCode = 1;
}

if (process.argv[1] === FILE) await main();
