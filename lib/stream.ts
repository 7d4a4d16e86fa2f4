import { onAbort } from "./abort.js";
import { checkText } from "./call_options.js";
import type { EncodedVector, Encoding, EngineRows, TextOrTokens } from "./engine.js";
import { AbortError, callersCode, outward, ThrownByCaller } from "./errors.js";
import { invalid, readArgument } from "./option_rules.js";
import { copyOfTokens, rowsOf } from "./slices.js";

/**
 * Most texts in progress, from when they are read until their vectors are consumed; and characters, or token ids, since
 * texts may be whole files.
 */
const WINDOW_TEXTS = 1024;
const WINDOW_CHARACTERS = 2 << 20;
/** Most that the engine gets at once: one half of the window is read while the other is computed. */
const CHUNK_TEXTS = WINDOW_TEXTS / 2;
const CHUNK_CHARACTERS = WINDOW_CHARACTERS / 2;
/** How long a source that never waits is read before the event loop runs. */
const READING_MS = 5;

/** The vector of one text of a stream. */
export interface StreamedVector<E extends Encoding = "float32"> {
  /** Index of the text in the source, from 0. */
  index: number;
  /** Its vector. */
  vector: EncodedVector[E];
  /** Whether the text was truncated to `maxTokens`. */
  truncated: boolean;
}

/** @throws EmbedderError `INVALID_ARGUMENT` for what cannot be iterated; strings are refused, too. */
export function checkSource(source: unknown): void {
  const isIterable = () =>
    typeof source === "object" && source !== null && (Symbol.iterator in source || Symbol.asyncIterator in source);
  if (!readArgument("source", isIterable)) throw invalid("source", "an iterable or async iterable of texts", source);
}

/** Embeds texts and delivers their vectors as they become ready. */
type EmbedChunk = (texts: TextOrTokens[], signal: AbortSignal, take: (rows: EngineRows) => void) => Promise<void>;

/**
 * Embeds texts as they arrive, and yields each vector as soon as it is ready. Reads at most a window ahead of the consumer.
 * Does not wait for a slow source: as soon as the engine is idle, it gets the texts that have been read.
 *
 * @param vocabularySize Token ids must be below it.
 * @param embed Its signal is aborted with `signal`, and when the consumer leaves early.
 */
export async function* streamVectors<E extends Encoding>(
  source: Iterable<TextOrTokens> | AsyncIterable<TextOrTokens>,
  signal: AbortSignal | undefined,
  vocabularySize: number,
  embed: EmbedChunk,
): AsyncGenerator<StreamedVector<E>, void, undefined> {
  const stream = new VectorStream<E>(vocabularySize, embed);
  const abort = () => stream.abort(signal?.reason);
  const stopWaiting = onAbort(signal, abort);
  if (signal?.aborted) abort();
  try {
    void stream.readAhead(source);
    for (let next = await stream.next(); next; next = await stream.next()) yield next;
  } catch (error) {
    throw outward(error);
  } finally {
    stopWaiting();
    await stream.leave();
  }
}

class VectorStream<E extends Encoding> {
  #iterator: AsyncIterator<unknown> | undefined;
  readonly #vocabularySize: number;
  readonly #embed: EmbedChunk;
  readonly #leaving = new AbortController();
  /** Whether the source has no more texts. */
  #hasEnded = false;
  /** Whether the source has been asked for a text that has not arrived yet. */
  #isReading = false;
  /** Consecutive texts that the engine gets next; the first of them is text `#first` of the source. */
  #texts: TextOrTokens[] = [];
  #characters = 0;
  #first = 0;
  /** Chunks that are being computed. */
  #computing = 0;
  #ready: { vector: StreamedVector<E>; characters: number }[] = [];
  /** Totals of texts that were read and whose vectors have not been consumed. */
  readonly #open = { texts: 0, characters: 0 };
  #failure: { error: unknown } | undefined;
  /** Wake up the consumer if there may be a vector, and the reader if there is room. */
  #wakeTaker = () => {};
  #wakeReader = () => {};

  constructor(vocabularySize: number, embed: EmbedChunk) {
    this.#vocabularySize = vocabularySize;
    this.#embed = embed;
  }

  /** The next vector; `undefined` after the last. */
  async next(): Promise<StreamedVector<E> | undefined> {
    while (true) {
      if (this.#failure) throw this.#failure.error;
      const next = this.#ready.shift();
      if (next) {
        this.#open.texts--;
        this.#open.characters -= next.characters;
        if (this.#hasRoomForChunk()) this.#wakeReader();
        return next.vector;
      }
      if (this.#hasEnded && this.#computing === 0) return undefined;
      await new Promise<void>((resolve) => {
        this.#wakeTaker = resolve;
      });
    }
  }

  /** Reads the source to its end, as fast as vectors are consumed. */
  async readAhead(source: Iterable<unknown> | AsyncIterable<unknown>): Promise<void> {
    let turn = performance.now();
    try {
      const iterator = iteratorOf(source);
      this.#iterator = iterator;
      while (!this.#hasEnded && !this.#leaving.signal.aborted) {
        if (this.#open.texts >= WINDOW_TEXTS || this.#open.characters >= WINDOW_CHARACTERS) {
          this.#compute();
          await new Promise<void>((resolve) => {
            this.#wakeReader = resolve;
          });
          continue;
        }
        const { done, value } = await this.#read(iterator);
        if (done) break;
        const text = typeof value === "string" ? value : this.#tokens(value);
        this.#texts.push(text);
        this.#characters += text.length;
        this.#open.texts++;
        this.#open.characters += text.length;
        if (this.#texts.length === CHUNK_TEXTS || this.#characters >= CHUNK_CHARACTERS) this.#compute();
        if (performance.now() - turn >= READING_MS) {
          await new Promise((resolve) => setImmediate(resolve));
          turn = performance.now();
        }
      }
      this.#compute();
      this.#wakeTaker();
    } catch (error) {
      this.#fail(error);
    }
  }

  abort(reason: unknown): void {
    this.#leaving.abort(reason);
    this.#fail(new AbortError(this.#leaving.signal));
  }

  /** Drops what has not been computed yet, and lets the source clean up. */
  async leave(): Promise<void> {
    this.#leaving.abort();
    if (this.#hasEnded) return;
    const returned = (async () => this.#iterator?.return?.())();
    // A source that is still waiting for its next text cleans up only after it.
    if (this.#isReading) returned.catch(() => {});
    // Only the first error counts.
    else await (this.#failure ? returned.catch(() => {}) : returned);
  }

  /** @throws EmbedderError `INVALID_ARGUMENT`; ThrownByCaller */
  async #read(iterator: AsyncIterator<unknown>): Promise<IteratorResult<unknown>> {
    let next: unknown;
    this.#isReading = true;
    const nothingAtHand = setImmediate(() => this.#computeIfIdle());
    try {
      next = await iterator.next();
      if (typeof next === "object" && next !== null) {
        const { done, value } = next as IteratorResult<unknown>;
        this.#hasEnded = Boolean(done);
        return { done: this.#hasEnded, value };
      }
    } catch (error) {
      // The source has ended, so that it must not be closed.
      this.#iterator = undefined;
      throw new ThrownByCaller(error);
    } finally {
      clearImmediate(nothingAtHand);
      this.#isReading = false;
    }
    throw invalid("source", "an iterator whose next() gives an object", next);
  }

  /**
   * A checked copy of the next token ids: the source may reuse the memory. They are checked here, where their index in the
   * source is known.
   *
   * @throws EmbedderError `INVALID_ARGUMENT`
   */
  #tokens(value: unknown): TextOrTokens {
    const what = `text ${this.#first + this.#texts.length}`;
    const text = checkText(what, value);
    if (typeof text === "string") return text;
    const tokens = copyOfTokens(what, text);
    if (tokens.length === 0) throw invalid(what, "at least one token id", tokens);
    const place = tokens.findIndex((id) => id >= this.#vocabularySize);
    if (place < 0) return tokens;
    const expected = `token ids of this model, from 0 to ${this.#vocabularySize - 1} (they differ from model to model)`;
    throw invalid(what, expected, tokens[place]);
  }

  /** Passes on what was read if the engine is idle. */
  #computeIfIdle(): void {
    if (this.#computing === 0) this.#compute();
  }

  #compute(): void {
    const [first, texts] = [this.#first, this.#texts];
    if (texts.length === 0 || this.#leaving.signal.aborted) return;
    this.#first += texts.length;
    this.#texts = [];
    this.#characters = 0;
    this.#computing++;
    const take = (rows: EngineRows) => {
      const truncated = new Set(rows.truncated);
      const vectors = rowsOf(rows.vectors as EncodedVector[E], rows.indices.length);
      for (const [row, index] of rows.indices.entries()) {
        const vector = {
          index: first + index,
          vector: vectors[row] as EncodedVector[E],
          truncated: truncated.has(index),
        };
        this.#ready.push({ vector, characters: (texts[index] ?? "").length });
      }
      this.#wakeTaker();
    };
    const end = () => {
      this.#computing--;
      if (this.#isReading) this.#computeIfIdle();
      this.#wakeTaker();
    };
    this.#embed(texts, this.#leaving.signal, take).then(end, (error) => this.#fail(error));
  }

  #hasRoomForChunk(): boolean {
    const { texts, characters } = this.#open;
    return texts <= WINDOW_TEXTS - CHUNK_TEXTS && characters <= WINDOW_CHARACTERS - CHUNK_CHARACTERS;
  }

  #fail(error: unknown): void {
    this.#failure ??= { error };
    this.#wakeTaker();
  }
}

/** The iterator that `for await` would use. @throws EmbedderError `INVALID_ARGUMENT`; ThrownByCaller */
function iteratorOf(source: Iterable<unknown> | AsyncIterable<unknown>): AsyncIterator<unknown> {
  const iterator = callersCode(() => {
    const methods: Partial<Iterable<unknown> & AsyncIterable<unknown>> = source;
    const iterate: unknown = methods[Symbol.asyncIterator] ?? methods[Symbol.iterator];
    const made = typeof iterate === "function" ? iterate.call(source) : undefined;
    return typeof made?.next === "function" ? made : undefined;
  });
  if (iterator) return iterator;
  throw invalid("source", "an iterable or async iterable of texts", source);
}
