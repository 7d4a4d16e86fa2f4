/**
 * MLX on CUDA and WebGPU on Vulkan beside PyTorch, on a machine with an NVIDIA card that has PyTorch, sentence-transformers
 * and CUDA's libraries as Python packages, and from which nothing can be downloaded. Everything else is packed elsewhere:
 *
 *     npm run release -- build linux-x64-gnu && npm run release -- build linux-x64-cuda
 *     node benches/nvidia.mjs pack       # target/nvidia/part-0, part-1, … of at most 60 MiB each, and how to unpack them
 *     <folder>/node benches/nvidia.mjs run --package=<folder>     # there, in this repository: one table
 *
 * The model is a NomicBert of full size with random weights, which is made there. What cannot be measured is a row with the
 * reason. `run --model=<folder> --lengths=16 --counts=1,2` is a trial on any machine, with the build of this clone.
 */

import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Random } from "../scripts/random.mjs";
import { Contestant } from "./contestants/contestant.mjs";
import { writeRandomModel } from "./models/random_model.mjs";
import { cosine, median } from "./report/statistics.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const PACKED = path.join(ROOT, "target/nvidia");
const PART = "60M";
const ROUNDS = 5;
const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json"];

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    package: { type: "string", default: ROOT },
    python: { type: "string", default: "python3" },
    model: { type: "string" },
    lengths: { type: "string", default: "128,512" },
    counts: { type: "string", default: "1,8,32,64" },
  },
});

/** One command; throws with what it printed. */
function run(program, args, settings) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8", ...settings });
  if (status !== 0) throw new Error(`${program} ${args[0]}: ${error?.message ?? stderr.trim().split("\n").at(-1)}`);
  return stdout.trim();
}

/** The package as npm would install it, Node.js, a Vulkan loader and a tokenizer, compressed and cut. */
async function pack() {
  const { starterModelFolder } = await import("../scripts/starter-model.mjs");
  const { bringSoftwareGpu } = await import("../scripts/software-gpu.mjs");
  const folder = path.join(PACKED, "package");
  rmSync(PACKED, { recursive: true, force: true });
  const modules = path.join(folder, "node_modules");
  mkdirSync(modules, { recursive: true });
  for (const name of ["dist", "index.js", "package.json"])
    cpSync(path.join(ROOT, name), path.join(folder, name), { recursive: true });
  for (const name of ["@huggingface/tokenizers", "commander", "undici"]) {
    cpSync(path.join(ROOT, "node_modules", name), path.join(modules, name), { recursive: true });
  }
  for (const platform of ["linux-x64-gnu", "linux-x64-cuda"]) {
    const built = path.join(ROOT, "target/npm", platform);
    if (!existsSync(path.join(built, "package.json"))) throw new Error(`npm run release -- build ${platform}`);
    cpSync(built, path.join(modules, `semantic-search-native-${platform}`), { recursive: true });
  }
  cpSync(process.execPath, path.join(folder, "node"));
  const { folder: gpu, reason } = await bringSoftwareGpu();
  if (gpu) cpSync(path.join(gpu, "libvulkan.so.1"), path.join(folder, "libvulkan.so.1"));
  else console.log(`without a Vulkan loader: ${reason}`);
  for (const file of TOKENIZER_FILES) cpSync(path.join(starterModelFolder(), file), path.join(folder, file));
  run(
    "sh",
    [
      "-c",
      `tar --create --directory=package . | xz -6 --threads=0 | split --bytes=${PART} --numeric-suffixes --suffix-length=1 - part-`,
    ],
    { cwd: PACKED },
  );
  for (const name of readdirSync(PACKED).filter((name) => name.startsWith("part-"))) {
    console.log(`${name}: ${(statSync(path.join(PACKED, name)).size / 2 ** 20).toFixed(1)} MiB`);
  }
  console.log("unpack: cat part-* | xz --decompress | tar --extract --directory=<folder>");
}

/** Where CUDA's libraries lie, and what makes Vulkan find NVIDIA's driver; `vulkan` says why it would not. */
function environment() {
  const list =
    "import glob, site; print(':'.join(p for s in site.getsitepackages() for p in glob.glob(s + '/nvidia/*/lib')))";
  // Without Python, its rows say so.
  const cuda = spawnSync(options.python, ["-c", list], { encoding: "utf8" }).stdout?.trim();
  const env = { LD_LIBRARY_PATH: [options.package, cuda, process.env.LD_LIBRARY_PATH].filter(Boolean).join(":") };
  const folders = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"].filter((folder) => existsSync(folder));
  const installed = folders.some((folder) => readdirSync(folder).some((name) => name.startsWith("nvidia")));
  if (process.env.VK_DRIVER_FILES || installed) return { env };
  const driver = /libGLX_nvidia\.so\.0.*=> (.*)/.exec(spawnSync("ldconfig", ["-p"], { encoding: "utf8" }).stdout)?.[1];
  if (!driver) return { env, vulkan: "NVIDIA's part of Vulkan (libGLX_nvidia.so.0) is not on this machine" };
  const file = path.join(os.tmpdir(), "nvidia_icd.json");
  writeFileSync(
    file,
    JSON.stringify({ file_format_version: "1.0.1", ICD: { library_path: driver, api_version: "1.3" } }),
  );
  return { env: { ...env, VK_DRIVER_FILES: file, VK_ICD_FILENAMES: file } };
}

function makeModel() {
  const folder = path.join(os.tmpdir(), "nomic-random");
  writeRandomModel({ folder, layers: 12, pooling: "cls" });
  for (const file of TOKENIZER_FILES) cpSync(path.join(options.package, file), path.join(folder, file));
  return folder;
}

/** Titles, and what starts the driver of each. */
function contestants(model, maxTokens, vulkan) {
  const drivers = path.join(ROOT, "benches/drivers");
  const ours = (backend, dtype, more = {}) => [
    process.execPath,
    path.join(drivers, "ours.mjs"),
    { package: options.package, model, maxTokens, threads: os.availableParallelism(), options: { backend, dtype } },
    more,
  ];
  const torch = (dtype) => [
    options.python,
    path.join(drivers, "sentence_transformers_py.py"),
    { model, maxTokens, dtype, batchSizes: [64] },
  ];
  return {
    "PyTorch float32": torch("float32"),
    "PyTorch float16": torch("float16"),
    "PyTorch bfloat16": torch("bfloat16"),
    "MLX float32": ours("mlx", "f32", { MLX_ENABLE_TF32: "0" }),
    "MLX float32, products in TF32": ours("mlx", "f32", { MLX_ENABLE_TF32: "1" }),
    "MLX float16": ours("mlx", "f16"),
    "MLX bfloat16": ours("mlx", "bf16"),
    "WebGPU float32": vulkan ?? ours("webgpu", "f32"),
    "CPU float32": ours("onnx", "f32"),
  };
}

async function measure() {
  const [lengths, counts] = [options.lengths, options.counts].map((list) => list.split(",").map(Number));
  const { env, vulkan } = environment();
  const model = options.model ?? makeModel();
  // Each word of the vocabulary is one token, as are both special ones. Equal texts would be computed once.
  const words = ["time", "the", "of", "and", "to", "in", "is", "that", "was", "for"];
  const random = new Random("words");
  const text = (length) => Array.from({ length: length - 2 }, () => random.of(words)).join(" ");
  const lists = {};
  for (const length of lengths) {
    for (const count of counts) lists[`${length} × ${count}`] = Array.from({ length: count }, () => text(length));
  }
  const compared = lengths.flatMap((length) => Array.from({ length: 4 }, () => text(length)));
  const texts = path.join(os.tmpdir(), "nvidia-texts.json");
  writeFileSync(texts, JSON.stringify({ ...lists, compared, first: text(lengths[0]) }));
  const rows = [];
  const all = contestants(model, Math.max(...lengths), vulkan);
  const start = ([program, driver, setup, more], env) =>
    Contestant.start(program, [driver, JSON.stringify({ ...setup, texts })], { ...env, ...more });
  const onCpu = await start(all["PyTorch float32"], { CUDA_VISIBLE_DEVICES: "" });
  const reference = onCpu.introduction.refused ? null : await onCpu.ask({ want: "vectors", texts: "compared" });
  await onCpu.end();
  for (const [title, how] of Object.entries(all)) {
    if (typeof how === "string") {
      rows.push([title, `not measured: ${how}`]);
      continue;
    }
    const contestant = await start(how, env);
    try {
      const { refused, device } = contestant.introduction;
      if (refused) throw new Error(refused);
      const vectors = await contestant.ask({ want: "vectors", texts: "compared" });
      const cosines = reference && vectors.map((vector, index) => cosine(vector, reference[index]));
      const speeds = [];
      for (const name of Object.keys(lists)) {
        const seconds = [];
        for (let round = 0; round <= ROUNDS; round++)
          seconds.push((await contestant.ask({ want: "seconds", texts: name })).wall);
        // The first time, kernels are compiled.
        speeds.push((lists[name].length / median(seconds.slice(1))).toFixed(1));
      }
      rows.push([title, device, ...speeds, cosines ? Math.min(...cosines).toFixed(6) : "no PyTorch"]);
    } catch (error) {
      rows.push([title, `not measured: ${error.message}`]);
    } finally {
      await contestant.end();
    }
    console.error(rows.at(-1).join("  "));
  }
  const { stdout: card } = spawnSync("nvidia-smi", ["--query-gpu=name,driver_version", "--format=csv,noheader"], {
    encoding: "utf8",
  });
  console.log(
    `\n${(card ?? "no NVIDIA card").trim()}; ${os.cpus()[0].model.trim()}; texts/s by tokens × batch; median of ${ROUNDS}\n`,
  );
  const head = ["", "on", ...Object.keys(lists), "least cosine to PyTorch float32 on the CPU"];
  for (const row of [head, head.map(() => "---"), ...rows]) console.log(`| ${row.join(" | ")} |`);
}

const COMMANDS = { pack, run: measure };
const command = COMMANDS[positionals[0]];
if (!command) throw new Error(`expected ${Object.keys(COMMANDS).join(" or ")}, found ${positionals[0]}`);
await command();
