import { unlessAborted } from "./abort.js";
import type { EmbedOptions } from "./call_options.js";
import type { Encoding, Engine, EngineCall, EngineProgress, EngineResult, TextOrTokens } from "./engine.js";

/**
 * One `embed` or `score` call of an engine. An aborted signal, or an error that `onProgress` throws, cancels it and rejects at once.
 *
 * @throws EmbedderError, ThrownByCaller
 */
export async function call(
  engine: Engine,
  texts: TextOrTokens[],
  { query, kind, encoding = "float32", signal, onProgress }: EmbedOptions<Encoding> & Pick<EngineCall, "query">,
): Promise<EngineResult> {
  const stop = new AbortController();
  const options = { query, isQuery: kind === "query", encoding, signal: stop.signal };
  if (!signal && !onProgress) return engine.embed(texts, options);
  const computed = new Promise<EngineResult>((resolve, reject) => {
    const report = (progress: EngineProgress) => {
      // A report may arrive while the call ends.
      if (stop.signal.aborted) return;
      try {
        onProgress?.({ ...progress, total: texts.length });
      } catch (error) {
        reject(error);
      }
    };
    const embedded = engine.embed(texts, { ...options, onProgress: onProgress && report });
    unlessAborted(embedded, signal).then(resolve, reject);
  });
  try {
    const result = await computed;
    onProgress?.({ done: texts.length, total: texts.length, tokens: result.tokens });
    return result;
  } finally {
    stop.abort();
  }
}
