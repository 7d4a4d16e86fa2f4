import type { Embedder } from "../embedder.js";
import { finish } from "../lib/fallback/vector.js";
import type { Matryoshka } from "../lib/model_dir.js";
import { Admission, type AdmissionSettings } from "./admission.js";
import type { Exchange, ServerLimits } from "./exchange.js";
import { HttpServer, type Route } from "./http_server.js";
import { Metrics } from "./metrics.js";
import { ApiError, checkModel, embeddingsResponse, parseEmbeddingsRequest } from "./openai_api.js";

export interface ServedModel {
  embedder: Embedder;
  /** The name of the model in requests. */
  name: string;
  /** Version of this package. */
  version: string;
  /** Most texts of a request. */
  maxBatch: number;
  /** Set if requests may ask for fewer dimensions. */
  matryoshka: Pick<Matryoshka, "layerNorm"> | undefined;
}

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
  const { embedder, name, version } = model;
  const created = Math.floor(Date.now() / 1000);
  const modelObject = { id: name, object: "model", created, owned_by: "semantic-search-native" };
  const methods = ["GET", "HEAD"];
  return {
    "/v1/embeddings": {
      methods: ["POST"],
      answer: async (exchange) => {
        const leave = admission.enter(exchange.request);
        await answerEmbeddings(exchange, model).finally(leave);
      },
    },
    "/v1/models": {
      methods,
      answer: async (exchange) => exchange.sendJson(200, { object: "list", data: [modelObject] }),
    },
    "/v1/models/:model": {
      methods,
      answer: async (exchange) => {
        checkModel(nameInPath(exchange), name);
        exchange.sendJson(200, modelObject);
      },
    },
    "/health": {
      methods,
      isPublic: true,
      answer: async (exchange) => {
        const { backend, isGpu, dimension, maxTokens, fingerprint, fallbackReason } = embedder;
        const facts = { backend, isGpu, dimension, maxTokens, fingerprint, fallbackReason };
        // For a load balancer that asks on a kept connection.
        if (limits.isStopping) throw new ApiError(503, "stopping", "the server is stopping");
        exchange.sendJson(200, { status: "ok", model: name, version, ...facts });
      },
    },
    "/metrics": {
      methods,
      answer: async (exchange) => {
        const { backend, fingerprint } = embedder;
        const page = await metrics.page(embedder, { model: name, backend, fingerprint, version });
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

async function answerEmbeddings(exchange: Exchange, served: ServedModel): Promise<void> {
  const { embedder, name, maxBatch, matryoshka } = served;
  const { dimension, vocabularySize, maxTokens } = embedder;
  const limits = { model: name, dimension, vocabularySize, isMatryoshka: matryoshka !== undefined, maxBatch };
  const parsed = parseEmbeddingsRequest(await exchange.readJson(), limits);
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
  // OpenAI's answer has no field for it, but truncation must not go unnoticed.
  if (truncated.length > 0) exchange.response.setHeader("x-truncated-inputs", truncated.subarray(0, 100).join());
  await exchange.sendJsonPieces(embeddingsResponse(vectors, parsed, name, tokens));
}
