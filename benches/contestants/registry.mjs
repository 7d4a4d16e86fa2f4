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
/** Smaller ones may be faster: padding costs less, and little of a text's work leaves the processor's cache. */
const BATCH_SIZES = [1, 8, 32];
const BFLOAT16 = "numbers with 8 significant bits";

/**
 * @typedef {object} Peer
 * @property {string} title for people
 * @property {string} [driver] script; without it the installed program is the driver itself
 * @property {(settings: { withLarge: boolean }) => import("./install.mjs").Installed} install
 * @property {object} [setup] added to the driver's setup
 * @property {string} [difference] why its vectors differ from the model's, where they do
 * @property {string} [needs] file or folder in the model's folder that is made for this peer; see `../models/prepare.mjs`
 */

/** @type {{ [name: string]: Peer }} */
export const PEERS = {
  "ours-f32": {
    title: "semantic-search-native, float32",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "onnx", dtype: "f32" } },
  },
  "ours-bf16": {
    title: "semantic-search-native, bfloat16",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "cpu", dtype: "bf16" } },
    difference: BFLOAT16,
  },
  "ours-int8": {
    title: "semantic-search-native, int8",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "cpu", dtype: "int8" } },
    difference: "weights in 8 bits with one scale per output",
  },
  "ours-mlx": {
    title: "semantic-search-native, MLX float32",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "mlx", dtype: "f32" } },
  },
  "ours-mlx-auto": {
    title: "semantic-search-native, MLX",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "mlx" } },
    difference: "half precision on a GPU",
  },
  "ours-webgpu": {
    title: "semantic-search-native, WebGPU float32",
    driver: "ours.mjs",
    install: node,
    setup: { options: { backend: "webgpu" } },
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
  "transformers.js-webgpu": {
    title: "transformers.js, WebGPU float32",
    driver: "transformers_js.mjs",
    install: npmPeers,
    setup: { dtype: "fp32", device: "webgpu" },
    needs: "onnx/model.onnx",
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
  "sentence-transformers-bf16": {
    title: "sentence-transformers (PyTorch), bfloat16",
    driver: "sentence_transformers_py.py",
    install: ({ withLarge }) => pythonPeer("torch", withLarge),
    setup: { dtype: "bfloat16", batchSizes: BATCH_SIZES },
    difference: BFLOAT16,
  },
  "sentence-transformers-openvino": {
    title: "sentence-transformers (OpenVINO)",
    driver: "sentence_transformers_py.py",
    install: ({ withLarge }) => pythonPeer("optimum", withLarge),
    setup: { backend: "openvino", batchSizes: BATCH_SIZES },
    needs: "openvino",
    difference: "OpenVINO computes in bfloat16 where the processor does",
  },
  "openvino-bf16": {
    title: "OpenVINO for throughput, bfloat16",
    driver: "openvino_py.py",
    install: () => pythonPeer("openvino"),
    setup: { precision: "bf16" },
    difference: BFLOAT16,
  },
  "openvino-int8": {
    title: "OpenVINO for throughput, int8",
    driver: "openvino_py.py",
    install: () => pythonPeer("openvino"),
    setup: { precision: "int8" },
    needs: "openvino",
    difference: "weights and activations in 8 bits, calibrated by NNCF on some dozen texts",
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
  const { program, folder, env: own, missing } = install(measured);
  const refusal = missing ?? (needs && model.derive(needs));
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
  const args = [...(driver ? [path.join(DRIVERS, driver)] : []), JSON.stringify(started)];
  return Contestant.start(program, args, { ...own, ...env });
}
