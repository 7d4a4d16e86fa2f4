import { lookup } from "node:dns/promises";
import { once } from "node:events";
import * as path from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import type { LoadOptions } from "../lib/load_options.js";
import type { ModelSource } from "../lib/model_source.js";
import { downloadProgress } from "./download_progress.js";
import { CommandLineError, EXIT_CODES, failureOf } from "./failure.js";
import { interruptionSignal } from "./interruption.js";
import {
  addLoadOptions,
  bytes,
  count,
  type LoadFlags,
  loadOptions,
  rerankerOptions,
  secondsOption,
} from "./load_flags.js";
import { clearStatus, printResult, say } from "./terminal.js";

interface ServeFlags extends LoadFlags {
  host: string;
  port: number;
  apiKey?: string;
  modelName?: string;
  matryoshka?: boolean;
  maxBody: number;
  maxBatch: number;
  maxRequests: number;
  maxRequestsPerClient?: number;
  insecure?: boolean;
  requestTimeout: number;
  stopTimeout: number;
  allowHost: string[];
  idleTimeout?: number;
  json?: boolean;
}

const HELP = `
Routes:
  POST /v1/embeddings   as OpenAI's, with input (a string, an array of strings, or token ids of the model), model,
                        encoding_format (float, base64), dimensions, user; also input_type ("query" or "document"),
                        which selects the model's prompt, and truncation (false: a text beyond the token limit is an
                        error instead of being truncated)
  POST /api/embed       as Ollama's: model, input (a string or an array of strings), truncate, dimensions
  POST /rerank          of a reranker instead, also as /v1/rerank and /v2/rerank: query and documents (as Cohere's and
                        Jina's) or texts (as text-embeddings-inference's); also model, top_n, return_documents or
                        return_text, raw_scores, and truncation or truncate
  GET  /v1/models       the model that is served; an embedder has a second name, <name>:query, for clients that cannot
                        send an input_type: with it, texts are queries
  GET  /health          200 while requests are accepted
  GET  /metrics         for Prometheus

The address is printed on standard output once requests are accepted. Ctrl-C or SIGTERM lets requests in flight finish.
The server accepts connections from this machine only, unless --host is given. It then requires an API key, preferably in
the environment variable SEMANTIC_SEARCH_API_KEY. It speaks HTTP: for TLS, put a proxy in front.

Examples:
  $ semantic-search-native serve ./models/CodeRankEmbed
  $ semantic-search-native serve ./models/all-MiniLM-L6-v2 --port 0 --model-name text-embedding-3-small
  $ curl http://127.0.0.1:8080/v1/embeddings -H "content-type: application/json" \\
      -d '{"model": "CodeRankEmbed", "input": "where are tokens validated?", "input_type": "query"}'`;

export function addServe(program: Command): void {
  const command = program
    .command("serve")
    .description("serve an embedder (OpenAI's and Ollama's API) or a reranker over HTTP on this machine")
    .argument("<model>", "a model folder, or a name on the Hugging Face Hub")
    .option("--host <address>", "address to listen on", "127.0.0.1")
    .option("-p, --port <number>", "port to listen on; 0 for any free one", port, 8080)
    .option("--api-key <key>", "require this key (default: SEMANTIC_SEARCH_API_KEY, else none)")
    .option("--insecure", "require no API key although other machines can connect")
    .option("--model-name <name>", "name of the model in requests (default: its id or the name of its folder)")
    .option("--matryoshka", "let requests ask for fewer dimensions, for models trained for it")
    .option("--max-body <bytes>", "largest request", bytes, 4 << 20)
    .option("--max-batch <count>", "most texts per request", count, 2048)
    .option("--max-requests <count>", "requests at a time; others get 429", count, 128)
    .option(
      "--max-requests-per-client <count>",
      "the same for one address (default: half of --max-requests; all of them if only this machine can connect)",
      count,
    )
    .addOption(
      secondsOption("--request-timeout <seconds>", "time for a request to arrive and its answer to be received", 60),
    )
    .addOption(secondsOption("--stop-timeout <seconds>", "time for requests in flight when the server stops", 8))
    .option("--allow-host <name...>", "names besides localhost that the Host header may have", [])
    .addOption(secondsOption("--idle-timeout <seconds>", "unload the weights after this time without a request"))
    .option("--json", "the address and messages as JSON");
  addLoadOptions(command);
  command.addHelpText("after", HELP).action(serve);
}

function port(value: string): number {
  const parsed = Number(value);
  if (/^\d+$/.test(value) && parsed <= 65_535) return parsed;
  throw new InvalidArgumentError("Expected a port, from 0 to 65535.");
}

async function serve(model: string, flags: ServeFlags): Promise<void> {
  if (flags.matryoshka && (flags.normalize === false || flags.dimensions !== undefined)) {
    const message =
      "--matryoshka shortens full vectors and scales them to length 1: not with --dimensions or --no-normalize";
    throw new CommandLineError("USAGE", message, { exitCode: EXIT_CODES.usage });
  }
  const apiKey = (flags.apiKey ?? process.env.SEMANTIC_SEARCH_API_KEY) || undefined;
  const [{ Embedder, Reranker }, { declaredTask }, { modelSource }, { isLoopback }, { embeddingServer }] =
    await Promise.all([
      import("../embedder.js"),
      import("../lib/backend.js"),
      import("../lib/model_source.js"),
      import("./admission.js"),
      import("./embedding_server.js"),
    ]);
  const { host } = flags;
  const { address } = await lookup(host);
  const isLocal = isLoopback(address);
  if (!isLocal && apiKey === undefined && !flags.insecure) {
    const message =
      `with --host ${host} other machines can connect: set an API key (SEMANTIC_SEARCH_API_KEY), or --insecure if ` +
      "whoever can connect may use the server";
    throw new CommandLineError("USAGE", message, { exitCode: EXIT_CODES.usage });
  }
  const signal = interruptionSignal();
  const { layerNorm, ...rest } = loadOptions(flags);
  const options: LoadOptions = rest;
  // With --matryoshka it applies to what requests ask for.
  if (layerNorm !== undefined && !flags.matryoshka) options.layerNorm = layerNorm;
  if (flags.idleTimeout) options.idleTimeoutMs = flags.idleTimeout;
  const source = modelSource(model);
  const onProgress = downloadProgress();
  const task = await declaredTask(source, { ...options, signal, onProgress });
  if (task === "rerank" && flags.matryoshka) {
    const message = "--matryoshka shortens vectors, and this model is a reranker";
    throw new CommandLineError("USAGE", message, { exitCode: EXIT_CODES.usage });
  }
  const loaded =
    task === "rerank"
      ? await Reranker.load(model, { ...rerankerOptions(options), signal, onProgress })
      : await Embedder.load(model, { ...options, signal, onProgress });
  const { version } = require("../../package.json") as { version: string };
  clearStatus();
  const name = flags.modelName ?? ("hub" in source ? source.hub.id : path.basename(source.folder));
  const { maxRequests, maxRequestsPerClient = isLocal ? maxRequests : Math.ceil(maxRequests / 2) } = flags;
  const matryoshka = flags.matryoshka ? { layerNorm: layerNorm ?? (await layerNormOf(source, options)) } : undefined;
  const server = embeddingServer(
    { loaded, name, version, maxBatch: flags.maxBatch, matryoshka },
    {
      ...{ host, address, apiKey, allowedHosts: flags.allowHost, maxRequests, maxRequestsPerClient },
      ...{ maxBodyBytes: flags.maxBody, requestTimeoutMs: flags.requestTimeout },
    },
    (error) => {
      const { code, message } = failureOf(error);
      say(flags.json, `error [${code}]: ${message}`, { error: { code, message } });
    },
  );
  try {
    const url = await server.listen(host, address, flags.port);
    const { backend, maxTokens } = loaded;
    const own = loaded instanceof Reranker ? { activation: loaded.activation } : { dimension: loaded.dimension };
    await printResult(flags.json, { url, model: name, backend, ...own, maxTokens, pid: process.pid }, url);
    const what = loaded instanceof Reranker ? "a reranker" : `${loaded.dimension} dimensions`;
    if (!flags.json) say(false, `serving ${name} (${what}, backend ${backend})`, {});
    if (!signal.aborted) await once(signal, "abort");
    if (!flags.json) say(false, "stopping: waiting for requests in flight; a second signal ends at once", {});
    const cutOff = await server.stop(flags.stopTimeout);
    if (cutOff > 0) throw new CommandLineError("CUT_OFF", `${cutOff} requests were cut off after --stop-timeout`);
  } finally {
    await loaded.close();
  }
}

/** Whether the model requires a layer norm before vectors are shortened, as `Embedder.load` with `dimensions` finds. */
async function layerNormOf(source: ModelSource, { pooling }: LoadOptions): Promise<boolean> {
  const [{ readModelDir }, { knownModel }, { pullWeights }] = await Promise.all([
    import("../lib/model_dir.js"),
    import("../lib/known_models.js"),
    import("../lib/hub/pull.js"),
  ]);
  const known = "hub" in source ? knownModel(source.hub.id) : undefined;
  if (known?.task === "embed") return known.layerNorm ?? false;
  // The model was just loaded, so it is in the cache.
  const dir = "hub" in source ? await pullWeights(source.hub, { safetensors: true }, { offline: true }) : source.folder;
  return readModelDir(dir, { dimensions: 1, ...(pooling && { pooling }) }).matryoshka?.layerNorm ?? false;
}
