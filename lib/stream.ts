import { onAbort } from "./abort.js";
import { type EncodedVector, type Encoding, type EngineResult, rowsOf } from "./engine.js";
import { AbortError, callersCode, outward, ThrownByCaller } from "./errors.js";
import { invalid } from "./options.js";

/** Texts of a chunk at most, and characters that end one early: texts may be whole files. */
const CHUNK_TEXTS = 512;
const CHUNK_CHARACTERS = 1 << 20;
/** Chunks that are computed or wait to be taken: the second one is ready when the first one is done. */
const CHUNKS = 2;

/** The vector of one text of a stream. */
export interface StreamedVector<E extends Encoding = "float32"> {
  /** Which text of the source, counted from 0. */
  index: number;
  vector: EncodedVector[E];
  /** Whether the text was cut to `maxTokens`. */
  truncated: boolean;
}

/** Some neighbouring texts of the source, as they go through the engine together. */
interface Chunk {
  first: number;
  texts: string[];
}

type Event =
  | { kind: "text"; text: unknown }
  | { kind: "end" }
  /** The source has nothing at hand. */
  | { kind: "pause" }
  | { kind: "embedded"; chunk: Chunk; result: EngineResult; computing: Promise<Event> };

/**
 * Embeds texts as they come. Reads ahead by two chunks at most, and no further while nobody takes the vectors. A source
 * that gives its texts slowly is not waited for: what is there is computed as soon as nothing else is.
 *
 * @param embed Embeds a chunk. Its signal is aborted with `signal`, and when the consumer leaves early.
 */
export async function* streamVectors<E extends Encoding>(
  source: Iterable<string> | AsyncIterable<string>,
  signal: AbortSignal | undefined,
  embed: (texts: string[], signal: AbortSignal) => Promise<EngineResult>,
): AsyncGenerator<StreamedVector<E>, void, undefined> {
  let iterator: AsyncIterator<unknown> | undefined;
  const leaving = new AbortController();
  const leave = () => leaving.abort(signal?.reason);
  const aborted = new Promise<never>((_, reject) => {
    leaving.signal.addEventListener("abort", () => reject(new AbortError(leaving.signal)), { once: true });
  });
  aborted.catch(() => {});
  const computing = new Set<Promise<Event>>();
  let reading: Promise<Event> | undefined;
  let hasEnded = false;
  let hasFailed = false;
  let chunk: Chunk = { first: 0, texts: [] };
  let characters = 0;

  const compute = () => {
    const current = chunk;
    chunk = { first: current.first + current.texts.length, texts: [] };
    characters = 0;
    const promise = embed(current.texts, leaving.signal).then(
      (result): Event => ({
        kind: "embedded",
        chunk: current,
        result,
        computing: promise,
      }),
    );
    computing.add(promise);
  };

  const stopWaiting = onAbort(signal, leave);
  if (signal?.aborted) leave();
  try {
    iterator = iteratorOf(source);
    while (!hasEnded || computing.size > 0) {
      const events = [...computing];
      if (!hasEnded && computing.size < CHUNKS) {
        reading ??= read(iterator);
        events.push(reading);
        if (computing.size === 0 && chunk.texts.length > 0) events.push(pause());
      }
      const event = await Promise.race([aborted, ...events]);
      if (event.kind === "text") {
        reading = undefined;
        const { text } = event;
        if (typeof text !== "string") throw invalid(`text ${chunk.first + chunk.texts.length}`, "a string", text);
        chunk.texts.push(text);
        characters += text.length;
        if (chunk.texts.length === CHUNK_TEXTS || characters >= CHUNK_CHARACTERS) compute();
      } else if (event.kind === "embedded") {
        computing.delete(event.computing);
        yield* vectorsOf<E>(event.chunk, event.result);
      } else {
        hasEnded ||= event.kind === "end";
        if (chunk.texts.length > 0) compute();
      }
    }
  } catch (error) {
    hasFailed = true;
    throw outward(error);
  } finally {
    leave();
    stopWaiting();
    // Their outcome is of no interest any more, but it must not go unhandled.
    void Promise.allSettled(computing);
    if (!hasEnded) {
      const returned = (async () => iterator?.return?.())();
      // A source that is still to give its next text would first do that.
      if (reading) returned.catch(() => {});
      // The first error is the one that counts.
      else await (hasFailed ? returned.catch(() => {}) : returned);
    }
  }
}

/** As `for await` finds it. @throws EmbedderError `INVALID_ARGUMENT`; ThrownByCaller */
function iteratorOf(source: Iterable<unknown> | AsyncIterable<unknown>): AsyncIterator<unknown> {
  const iterator = callersCode(() => {
    const methods: Partial<Iterable<unknown> & AsyncIterable<unknown>> = source;
    const iterate: unknown = methods[Symbol.asyncIterator] ?? methods[Symbol.iterator];
    const made = typeof iterate === "function" ? iterate.call(source) : undefined;
    return typeof made?.next === "function" ? made : undefined;
  });
  if (iterator) return iterator;
  throw invalid("source", "an iterable or async iterable of strings", source);
}

/** @throws EmbedderError `INVALID_ARGUMENT`; ThrownByCaller */
async function read(iterator: AsyncIterator<unknown>): Promise<Event> {
  let next: unknown;
  try {
    next = await iterator.next();
    if (typeof next === "object" && next !== null) {
      const { done, value } = next as IteratorResult<unknown>;
      return done ? { kind: "end" } : { kind: "text", text: value };
    }
  } catch (error) {
    throw new ThrownByCaller(error);
  }
  throw invalid("source", "an iterator whose next() gives an object", next);
}

function pause(): Promise<Event> {
  return new Promise((resolve) => setImmediate(() => resolve({ kind: "pause" })));
}

function* vectorsOf<E extends Encoding>({ first, texts }: Chunk, result: EngineResult): Generator<StreamedVector<E>> {
  const truncated = new Set(result.truncated);
  for (const [row, vector] of rowsOf(result.vectors as EncodedVector[E], texts.length).entries()) {
    yield { index: first + row, vector, truncated: truncated.has(row) };
  }
}
