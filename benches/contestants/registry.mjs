/**
 * Who is compared. Each peer is a driver in `../drivers/` and what it is started with; a new one is an entry here and a
 * file there.
 */

import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { ROOT } from "../../scripts/setup.mjs";
import { Contestant } from "./contestant.mjs";
import { candlePeer, llamaPeer, npmPeers, pythonPeer } from "./install.mjs";

const DRIVERS = fileURLToPath(new URL("../drivers", import.meta.url));
const node = () => ({ program: process.execPath });

/**
 * @typedef {object} Peer
 * @property {string} title for people
 * @property {string} [driver] script; without it the installed program is the driver itself
 * @property {(settings: { withLarge: boolean }) => import("./install.mjs").Installed} install
 * @property {object} [setup] added to the driver's setup
 * @property {string} [difference] why its vectors differ from the model's, where they do
 * @property {string} [needs] file of the model's folder that others do not read
 */

/** @type {{ [name: string]: Peer }} */
export const PEERS = {
  "ours-f32": {
    title: "semantic-search-native, float32",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "onnx", dtype: "f32" } },
  },
  "ours-int8": {
    title: "semantic-search-native, int8",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "onnx", dtype: "int8" } },
    difference: "weights in 8 bits with one scale per output",
  },
  "ours-mlx": {
    title: "semantic-search-native, MLX float32",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "mlx", dtype: "f32" } },
  },
  "ours-js": {
    title: "semantic-search-native, JavaScript fallback",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "onnx-js", dtype: "f32" } },
  },
  "transformers.js": {
    title: "transformers.js, float32",
    driver: "transformers_js.mjs",
    install: npmPeers,
    setup: { dtype: "fp32" },
    needs: "onnx/model.onnx",
    difference:
      "it cuts the closing special token off texts that are too long, and lower-cases as JavaScript does (Greek final sigma)",
  },
  "transformers.js-q8": {
    title: "transformers.js, q8",
    driver: "transformers_js.mjs",
    install: npmPeers,
    setup: { dtype: "q8" },
    difference:
      "weights in 8 bits with one scale per matrix, as the conversion script makes them, and what is said of float32",
    needs: "onnx/model_quantized.onnx",
  },
  onnxruntime: { title: "onnxruntime-node, loop by hand", driver: "onnxruntime.mjs", install: node },
  "fastembed-js": {
    title: "fastembed (npm)",
    driver: "fastembed_js.mjs",
    install: npmPeers,
    difference: "it takes the first token's state, whatever the model says, and pads every text to the limit",
  },
  "fastembed-py": { title: "fastembed (Python)", driver: "fastembed_py.py", install: () => pythonPeer("fastembed") },
  "sentence-transformers": {
    title: "sentence-transformers (PyTorch)",
    driver: "sentence_transformers_py.py",
    install: ({ withLarge }) => pythonPeer("torch", withLarge),
  },
  candle: { title: "candle", install: ({ withLarge }) => candlePeer(withLarge) },
  "node-llama-cpp": {
    title: "node-llama-cpp, float32 GGUF",
    driver: "node_llama_cpp.mjs",
    install: llamaPeer,
    needs: "model.gguf",
    difference: "llama.cpp's own arithmetic",
  },
  "mlx-py": { title: "MLX (Python)", driver: "mlx_py.py", install: () => pythonPeer("mlx") },
};

/** Not peers: the limits that ours is compared with in the engine's table. */
export const LIMITS = {
  products: { title: "matrix products alone", driver: "products.mjs", install: node },
  "bare-graph": { title: "the exported graph alone", driver: "bare_graph.mjs", install: node },
};

/** The package that is measured, with how many threads, and whether beside peers that take long to install too. */
export const measured = { package: ROOT, threads: os.availableParallelism(), withLarge: false };

/**
 * Starts the driver of a peer on a model.
 *
 * @param {Peer} peer
 * @param {object} job
 * @param {import("../models/prepare.mjs").Model} job.model
 * @param {string} job.texts file with the lists of texts
 * @param {number} job.maxTokens
 * @param {object} [job.options] added to those of our `Embedder.load`
 * @param {number} [job.threads]
 * @param {{ [name: string]: string }} [job.env]
 * @returns {Promise<Contestant | { introduction: { refused: string } }>}
 */
export async function startPeer({ driver, install, setup, needs }, { model, options, env, ...job }) {
  const { program, folder, missing } = install(measured);
  const refusal = missing ?? model.missing[needs];
  if (refusal) return { introduction: { refused: refusal } };
  const started = {
    ...measured,
    npm: folder,
    model: model.folder,
    pooling: model.pooling,
    ...job,
    ...setup,
    ...((setup?.options || options) && { options: { ...setup?.options, ...options } }),
  };
  return Contestant.start(program, [...(driver ? [path.join(DRIVERS, driver)] : []), JSON.stringify(started)], env);
}
