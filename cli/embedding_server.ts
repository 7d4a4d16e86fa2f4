import { type Embedder, Reranker } from "../embedder.js";
import { finish } from "../lib/fallback/vector.js";
import type { Matryoshka } from "../lib/model_dir.js";
import { Admission, type AdmissionSettings } from "./admission.js";
import { type EmbeddingRequest, embedderNames, type RequestLimits } from "./embedding_request.js";
import type { Exchange, ServerLimits } from "./exchange.js";
import { HttpServer, type Route } from "./http_server.js";
import { Metrics } from "./metrics.js";
import { parseOllamaRequest } from "./ollama_api.js";
import { parseEmbeddingsRequest } from "./openai_api.js";
import { ApiError, checkModel } from "./request.js";
import { parseRerankRequest, rerankResponse } from "./rerank_api.js";

export interface ServedModel {
  loaded: Embedder | Reranker;
  /** The name of the model in requests. */
  name: string;
  /** Version of this package. */
  version: string;
  /** Most texts of a request. */
  maxBatch: number;
  /** Set if requests may ask for fewer dimensions. */
  matryoshka: Pick<Matryoshka, "layerNorm"> | undefined;
}

/** How the body of a request for embeddings is read, by path. */
const EMBEDDING_APIS: Record<string, (body: unknown, limits: RequestLimits) => EmbeddingRequest> = {
  "/v1/embeddings": parseEmbeddingsRequest,
  "/api/embed": parseOllamaRequest,
};

/** As text-embeddings-inference, Jina and both versions of Cohere have it. */
const RERANK_PATHS = ["/rerank", "/v1/rerank", "/v2/rerank"];

/** How long a client may stop sending or receiving. */
const STALL_MS = 10_000;

/** @param onFailure Called for failures that the client did not cause. */
export function embeddingServer(
  model: ServedModel,
  settings: AdmissionSettings & Pick<ServerLimits, "maxBodyBytes" | "requestTimeoutMs">,
  onFailure: (error: unknown) => void,
): HttpServer {
  const { maxBodyBytes, requestTimeoutMs } = settings;
  const limits = { maxBodyBytes, requestTimeoutMs, stallMs: Math.min(STALL_MS, requestTimeoutMs), isStopping: false };
  const admission = new Admission(settings);
  const metrics = new Metrics();
  return new HttpServer({ routes: routesOf(model, limits, admission, metrics), limits, admission, metrics, onFailure });
}

function routesOf(
  model: ServedModel,
  limits: ServerLimits,
  admission: Admission,
  metrics: Metrics,
): Record<string, Route> {
  const { loaded, name, version } = model;
  const isReranker = loaded instanceof Reranker;
  const inference = (answer: (exchange: Exchange) => Promise<void>): Route => ({
    methods: ["POST"],
    answer: async (exchange) => {
      const leave = admission.enter(exchange.request);
      await answer(exchange).finally(leave);
    },
  });
  const inferences: [string, Route][] = isReranker
    ? RERANK_PATHS.map((path) => [path, inference((exchange) => answerRerank(exchange, model, loaded))])
    : Object.entries(EMBEDDING_APIS).map(([path, parse]) => [
        path,
        inference((exchange) => answerEmbeddings(exchange, model, loaded, parse)),
      ]);
  const names = isReranker ? [name] : embedderNames(name);
  const created = Math.floor(Date.now() / 1000);
  const modelObject = (id: string) => ({ id, object: "model", created, owned_by: "semantic-search-native" });
  const methods = ["GET", "HEAD"];
  return {
    ...Object.fromEntries(inferences),
    "/v1/models": {
      methods,
      answer: async (exchange) => exchange.sendJson(200, { object: "list", data: names.map(modelObject) }),
    },
    "/v1/models/:model": {
      methods,
      answer: async (exchange) => exchange.sendJson(200, modelObject(checkModel(nameInPath(exchange), names))),
    },
    "/health": {
      methods,
      isPublic: true,
      answer: async (exchange) => {
        const { backend, isGpu, maxTokens, fingerprint, fallbackReason } = loaded;
        const own = isReranker ? { activation: loaded.activation } : { dimension: loaded.dimension };
        const facts = { backend, isGpu, ...own, maxTokens, fingerprint, fallbackReason };
        // For a load balancer that asks on a kept connection.
        if (limits.isStopping) throw new ApiError(503, "stopping", "the server is stopping");
        exchange.sendJson(200, { status: "ok", model: name, version, ...facts });
      },
    },
    "/metrics": {
      methods,
      answer: async (exchange) => {
        const { backend, fingerprint } = loaded;
        const page = await metrics.page(loaded, { model: name, backend, fingerprint, version });
        exchange.sendText("text/plain; version=0.0.4; charset=utf-8", page);
      },
    },
  };
}

function nameInPath({ request }: Exchange): string {
  const [, encoded = ""] = /^\/v1\/models\/([^?]*)/.exec(request.url ?? "") ?? [];
  try {
    return decodeURIComponent(encoded);
  } catch {
    // No model has this name.
    return encoded;
  }
}

async function answerRerank(exchange: Exchange, served: ServedModel, reranker: Reranker): Promise<void> {
  const { name, maxBatch } = served;
  const parsed = parseRerankRequest(await exchange.readJson(), name, maxBatch);
  const { query, texts, topN, isRaw } = parsed;
  let tokens = 0;
  let truncated: Uint32Array = new Uint32Array();
  const ranked = await reranker
    .rank(query, texts, {
      ...(topN !== undefined && { topK: topN }),
      // All three services promise numbers between 0 and 1.
      activation: isRaw ? "none" : "sigmoid",
      signal: exchange.signal,
      onProgress: (progress) => {
        tokens = progress.tokens;
      },
      onTruncated: (indices) => {
        truncated = indices;
      },
    })
    .catch((error) => {
      // The only argument whose value is not checked above.
      if (error.code !== "INVALID_ARGUMENT") throw error;
      throw new ApiError(400, "context_length_exceeded", error.message, { param: "query" });
    });
  if (truncated.length > 0 && !parsed.truncation) {
    const param = parsed.isPlain ? "texts" : "documents";
    const message = `${param}[${truncated[0]}] is, together with the query, longer than ${reranker.maxTokens} tokens`;
    throw new ApiError(400, "context_length_exceeded", message, { param });
  }
  noteTruncation(exchange, truncated);
  exchange.sendJson(200, rerankResponse(ranked, parsed, name, tokens));
}

/** The answers have no field for it, but truncation must not go unnoticed. */
function noteTruncation({ response }: Exchange, truncated: Uint32Array): void {
  if (truncated.length > 0) response.setHeader("x-truncated-inputs", truncated.subarray(0, 100).join());
}

async function answerEmbeddings(
  exchange: Exchange,
  served: ServedModel,
  embedder: Embedder,
  parse: (body: unknown, limits: RequestLimits) => EmbeddingRequest,
): Promise<void> {
  const start = performance.now();
  const { name, maxBatch, matryoshka } = served;
  const { dimension, vocabularySize, maxTokens } = embedder;
  const limits = { model: name, dimension, vocabularySize, isMatryoshka: matryoshka !== undefined, maxBatch };
  const parsed = parse(await exchange.readJson(), limits);
  let tokens = 0;
  let truncated: Uint32Array = new Uint32Array();
  const embedded = await embedder.embed(parsed.texts, {
    kind: parsed.kind,
    signal: exchange.signal,
    onProgress: (progress) => {
      tokens = progress.tokens;
    },
    onTruncated: (indices) => {
      truncated = indices;
    },
  });
  if (truncated.length > 0 && !parsed.truncation) {
    const which = parsed.texts.length === 1 ? "input" : `input[${truncated[0]}]`;
    const message = `${which} is longer than ${maxTokens} tokens`;
    throw new ApiError(400, "context_length_exceeded", message, { param: "input" });
  }
  const { dimensions } = parsed;
  const vectors =
    dimensions === undefined || !matryoshka
      ? embedded
      : embedded.map((vector) => finish(vector, { dimensions, ...matryoshka }, true));
  noteTruncation(exchange, truncated);
  await exchange.sendJsonPieces(parsed.answer(vectors, { tokens, milliseconds: performance.now() - start }));
}
