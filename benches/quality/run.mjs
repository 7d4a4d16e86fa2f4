/**
 * `node benches/quality/run.mjs`: how well each configuration retrieves, on real code with the real starter model.
 *
 * Queries are docstrings of Python's standard library, documents the functions without them (`pairs.py`); the one right
 * answer to a query is its own function. A configuration is a row of the table: options for `Embedder.load`, and what is
 * made of the vectors before they are compared. The first row is what the others are measured against. The exit code is 1
 * if one falls short of its bounds.
 *
 * Options: --bounded (only rows that have bounds, and the first) --slow (also what needs a GPU, without one) --pairs=1000 --package=<folder with dist and the addon> --python=python3 --out=<folder>
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
import { commit } from "../provenance.mjs";
import { cosine, dot, sum } from "../statistics.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
/** A rank beyond this counts as not found. */
const DEPTH = 10;

/**
 * @typedef {object} Configuration
 * @property {string} name
 * @property {object} load options of `Embedder.load`
 * @property {"int8" | "binary"} [encoding] of `embed`
 * @property {(vector: Float32Array | Int8Array | Uint8Array) => ArrayLike<number>} [numbers] the vector as numbers to compare by
 * dot product
 * @property {boolean} [needsGpu] takes a second a text without, so only where `--slow` asks for it
 * @property {{ mrr: number, cosine: number }} [bounds] least MRR relative to the first row; least cosine of a vector to its
 * own in the first row
 */

/** @type {Configuration[]} */
const CONFIGURATIONS = [
  { name: "float32", load: { backend: "onnx", dtype: "f32" } },
  { name: "int8", load: { backend: "onnx", dtype: "int8" }, bounds: { mrr: 0.99, cosine: 0.98 } },
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

const { values: options } = parseArgs({
  options: {
    bounded: { type: "boolean", default: false },
    slow: { type: "boolean", default: false },
    pairs: { type: "string", default: "1000" },
    package: { type: "string", default: ROOT },
    python: { type: "string", default: "python3" },
    out: { type: "string", default: HERE },
  },
});

function output(program, args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8", maxBuffer: 1 << 30 });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")} failed: ${error ?? stderr}`);
  return stdout;
}

/** The vectors of a configuration; `null` where it needs what is not here. */
async function embed(Embedder, model, pairs, { load, encoding, numbers = (vector) => vector, needsGpu }) {
  let embedder;
  try {
    embedder = await Embedder.load(model, load);
  } catch (error) {
    if (needsGpu && error.code === "BACKEND_UNAVAILABLE") return null;
    throw error;
  }
  try {
    if (needsGpu && !embedder.isGpu && !options.slow) return null;
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

/** `null` where vectors have another length than those of the first row. */
function cosines(ours, reference) {
  if (ours.queries[0].length !== reference.queries[0].length) return null;
  const all = ["queries", "documents"].flatMap((side) =>
    ours[side].map((vector, index) => cosine(vector, reference[side][index])),
  );
  return { least: Math.min(...all), mean: sum(all) / all.length };
}

function report(pairs, digest, rows) {
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
  const bounds = CONFIGURATIONS.filter(({ bounds }) => bounds).map(
    ({ name, bounds }) => `${name}: MRR ≥ ${bounds.mrr} of the first row's, every cosine ≥ ${bounds.cosine}`,
  );
  return `# Quality of retrieval

\`node benches/quality/run.mjs${options.slow ? " --slow" : ""}\`

- Task: ${pairs.length} docstrings of the standard library of ${output(options.python, ["--version"]).trim()} (SHA-256 of the pairs ${digest.slice(0, 12)}…); each has its own function, without the docstring, as the one right answer among all
- Model: all-MiniLM-L6-v2, real weights; texts are cut at its own limit
- Machine: ${os.cpus().length} × ${os.cpus()[0].model.trim()}, ${os.type()} ${os.arch()}; Node.js ${process.version}; commit ${commit()}
- Cosine: of each vector, queries and documents, to its own in the first row
- Bounds: ${bounds.join("; ")}

| configuration | MRR@${DEPTH} | difference | Recall@${DEPTH} | least cosine | mean cosine | bounds |
|---|--:|--:|--:|--:|--:|---|
${lines.map((line) => `| ${line} |`).join("\n")}
`;
}

async function main() {
  const model = await installStarterModel();
  const { Embedder } = createRequire(import.meta.url)(path.join(options.package, "dist/embedder.js"));
  const jsonLines = output(options.python, [path.join(HERE, "pairs.py"), options.pairs]);
  const pairs = jsonLines.trimEnd().split("\n").map(JSON.parse);
  const digest = createHash("sha256").update(jsonLines).digest("hex");

  const rows = [];
  let reference;
  for (const [index, configuration] of CONFIGURATIONS.entries()) {
    if (options.bounded && index > 0 && !configuration.bounds) continue;
    const vectors = await embed(Embedder, model, pairs, configuration);
    if (!vectors) continue;
    reference ??= vectors;
    const row = { name: configuration.name, ...retrieve(vectors), cosine: cosines(vectors, reference) };
    const { bounds } = configuration;
    if (bounds) row.passed = row.mrr >= bounds.mrr * rows[0].mrr && row.cosine.least >= bounds.cosine;
    rows.push(row);
    console.log(`${row.name}: MRR@${DEPTH} ${row.mrr.toFixed(4)}, least cosine ${row.cosine?.least.toFixed(4) ?? "-"}`);
  }
  mkdirSync(options.out, { recursive: true });
  writeFileSync(path.join(options.out, "RESULTS.md"), report(pairs, digest, rows));
  if (rows.some(({ passed }) => passed === false)) process.exitCode = 1;
}

await main();
