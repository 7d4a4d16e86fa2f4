import { cpSync, mkdtempSync, rmSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import type { Command } from "commander";
import type { LoadOptions } from "../lib/load_options.js";
import type { TrialFailure } from "./backend_trial.js";
import type { Report, Trials } from "./diagnosis.js";
import { downloadProgress } from "./download_progress.js";
import { CommandLineError, failureOf } from "./failure.js";
import { interruptionSignal } from "./interruption.js";
import { secondsOption } from "./load_flags.js";
import type { Machine } from "./machine.js";
import { clearStatus, onOneLine, printResult, showStatus, table } from "./terminal.js";

interface DoctorFlags {
  pooling?: NonNullable<LoadOptions["pooling"]>;
  onnxRuntimeLibrary?: string;
  measure: number;
  json?: boolean;
}

const BACKENDS = ["onnx", "cpu", "onnx-js", "webgpu", "mlx"] as const;
/** From dist/cli/. It is copied, since its graph is written next to it. */
const TRIAL_MODEL = path.join(__dirname, "../../cli/trial_model");
/** Ten texts with what tokenizers and models get wrong most easily. */
const TEXTS = [
  "where are tokens validated?",
  "function add(a, b) { return a + b }",
  "def area(radius):\n    return math.pi * radius ** 2",
  "SELECT name, count(*) FROM users WHERE active = 1 GROUP BY name;",
  "The search finds every file that was changed after the war.",
  "Ångström, naïve, ΟΔΟΣ, straße, İstanbul",
  "日本語のテキストと中文文本",
  "🚀 launch 👩‍👩‍👧 family",
  "",
  "word ".repeat(700),
];

const HELP = `
Checks the platform, tries every backend on ten texts in a separate process, compares their vectors in float32, and
measures their speed. Without a model, a tiny one with random weights is tried, and no speed is measured. Each problem is
reported with a fix; the exit code is 1 if there is a problem.

Examples:
  $ semantic-search-native doctor
  $ semantic-search-native doctor ./models/CodeRankEmbed
  $ semantic-search-native doctor ./models/CodeRankEmbed --json | jq .findings`;

export function addDoctor(program: Command): void {
  program
    .command("doctor")
    .description("find out what works on this machine, how fast, and what is wrong")
    .argument("[model]", "a model folder or a name on the Hub (default: SEMANTIC_SEARCH_MODEL, else a tiny one)")
    .option("--pooling <mode>", "pooling, if the model folder does not declare it")
    .option("--onnx-runtime-library <path>", "a libonnxruntime other than the one that was installed")
    .addOption(
      secondsOption("--measure <seconds>", "how long to measure texts, and queries, per backend; 0 skips it", 2),
    )
    .option("--json", "the findings as JSON")
    .addHelpText("after", HELP)
    .action(doctor);
}

async function doctor(modelArgument: string | undefined, flags: DoctorFlags): Promise<void> {
  const signal = interruptionSignal();
  const [{ describeMachine }, { tryBackend }, diagnosis] = await Promise.all([
    import("./machine.js"),
    import("./backend_trial.js"),
    import("./diagnosis.js"),
  ]);
  const model = modelArgument ?? (process.env.SEMANTIC_SEARCH_MODEL || undefined);
  const trials: Trials = new Map();
  const scratch = model === undefined ? mkdtempSync(path.join(os.tmpdir(), "semantic-search-doctor-")) : undefined;
  try {
    if (scratch !== undefined) cpSync(TRIAL_MODEL, scratch, { recursive: true });
    const missing = model === undefined ? undefined : await download(model, signal);
    for (const backend of BACKENDS) {
      if (missing) {
        trials.set(backend, { failure: missing });
        continue;
      }
      signal.throwIfAborted();
      showStatus(() => `trying ${backend} …`);
      const { onnxRuntimeLibrary, pooling = scratch && "mean" } = flags;
      const options: LoadOptions = { backend, dtype: "f32", offline: true, ...(pooling && { pooling }) };
      const request = {
        model: scratch ?? (model as string),
        options: { ...options, ...(onnxRuntimeLibrary && { onnxRuntimeLibrary }) },
        texts: TEXTS,
        measureMs: scratch === undefined ? flags.measure : 0,
        exportsGraph: scratch !== undefined && backend === "onnx",
      };
      trials.set(backend, await tryBackend(request, signal));
    }
  } finally {
    clearStatus();
    if (scratch !== undefined) rmSync(scratch, { recursive: true, force: true });
  }
  const report = diagnosis.diagnose(describeMachine(), model ?? null, trials);
  await printResult(flags.json, report, page(report));
  const problems = report.findings.filter(({ isProblem }) => isProblem).length;
  if (problems === 0) return;
  const found = problems === 1 ? "1 problem was found" : `${problems} problems were found`;
  throw new CommandLineError("PROBLEMS_FOUND", found);
}

/** Downloads a model of the Hub before it is tried. Resolves to the failure, if any. */
async function download(model: string, signal: AbortSignal): Promise<TrialFailure | undefined> {
  const [{ modelSource }, { pull }] = await Promise.all([
    import("../lib/model_source.js"),
    import("../lib/hub/pull.js"),
  ]);
  if (!("hub" in modelSource(model))) return undefined;
  try {
    await pull(model, { signal, onProgress: downloadProgress() });
  } catch (error) {
    signal.throwIfAborted();
    return failureOf(error);
  } finally {
    clearStatus();
  }
  return undefined;
}

function page({ machine, model, backends, parity, caches, findings }: Report): string {
  const { memoryBytes, memoryLimitBytes, processorLimit, kernels } = machine;
  const works = backends.flatMap((backend) => (backend.works ? [backend] : []));
  const facts = [
    ["package", machine.package + (machine.onnxruntimeNode ? `, onnxruntime-node ${machine.onnxruntimeNode}` : "")],
    ["node", `${machine.node} on ${[machine.platform, machine.arch, machine.libc].filter(Boolean).join(" ")}`],
    ["processor", `${machine.processor ?? "unknown"}, ${machine.processors} logical`],
    [
      "threads",
      `${machine.threads}${processorLimit === null ? "" : `, limited to ${processorLimit} by the container`}`,
    ],
    ["memory", `${size(memoryBytes)}${memoryLimitBytes === null ? "" : `, limited to ${size(memoryLimitBytes)}`}`],
    ["kernels", kernels === null ? "the addon cannot be loaded" : kernelNames(kernels)],
    ...caches.map(({ use, path, exists }) => [use, `${path} (${exists ? "exists" : "does not exist yet"})`]),
    ["model", model ?? "a tiny one with random weights"],
  ];
  if (works[0]) {
    const { dimension, maxTokens, pooling, fingerprint } = works[0];
    facts.push(["", `${dimension} dimensions, at most ${maxTokens} tokens, ${pooling.join(" + ")} pooling`]);
    if (model !== null) facts.push(["", `fingerprint ${fingerprint}`]);
  }
  const number = (value: number | null, unit: string) =>
    value === null ? "" : `${value >= 100 ? Math.round(value) : value.toPrecision(3)} ${unit}`;
  const rows = backends.map((backend) => {
    if (!backend.works) return [backend.backend, `no: ${backend.reason}`];
    const compared = parity.find((other) => other.backend === backend.backend);
    return [
      backend.backend,
      backend.isGpu || backend.adapter ? `works (${backend.adapter?.name ?? "GPU"})` : "works",
      `loaded in ${Math.round(backend.loadMs)} ms`,
      number(backend.textsPerSecond, "texts/s"),
      backend.queryP50Ms === null ? "" : `query ${number(backend.queryP50Ms, "ms")}`,
      compared ? `differs from ${compared.against} by ${compared.maxDifference.toExponential(1)}` : "",
    ];
  });
  const advice = findings.flatMap(({ isProblem, what, fix }) => [
    `${isProblem ? "PROBLEM" : "note"}: ${what}`,
    ...(fix === null ? [] : [`  ${isProblem ? "fix" : "if wanted"}: ${fix}`]),
  ]);
  // Working backends have columns, others a sentence.
  const working = table(rows.filter(({ length }) => length > 2));
  const failing = rows.filter(({ length }) => length === 2).map((row) => onOneLine(row.join("  ")));
  return [
    table(facts),
    "",
    working,
    ...failing,
    "",
    ...(advice.length > 0 ? advice.map(onOneLine) : ["no problems"]),
  ].join("\n");
}

function kernelNames({ level, ...formats }: NonNullable<Machine["kernels"]>): string {
  const names = Object.entries(formats).map(([format, name]) => `${format} ${name}`);
  return `${level}: ${names.join(", ")}`;
}

function size(bytes: number): string {
  return bytes < 1 << 20
    ? `${Math.ceil(bytes / 1024)} KiB`
    : bytes < 1 << 30
      ? `${(bytes / (1 << 20)).toFixed(0)} MiB`
      : `${(bytes / (1 << 30)).toFixed(1)} GiB`;
}
