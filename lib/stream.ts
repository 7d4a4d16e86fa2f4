import { onAbort } from "./abort.js";
import { checkText } from "./call_options.js";
import {
  copyOfTokens,
  type EncodedVector,
  type Encoding,
  type EngineRows,
  rowsOf,
  type TextOrTokens,
} from "./engine.js";
import { AbortError, callersCode, outward, ThrownByCaller } from "./errors.js";
import { invalid, readArgument } from "./option_rules.js";

/**
 * Texts on their way at most, from when they are read until their vectors are taken; and characters, or token ids: texts
 * may be whole files.
 */
const WINDOW_TEXTS = 1024;
const WINDOW_CHARACTERS = 2 << 20;
/** What the engine is given at once: one half of the window is read while the other is computed. */
const CHUNK_TEXTS = WINDOW_TEXTS / 2;
const CHUNK_CHARACTERS = WINDOW_CHARACTERS / 2;
/** A source that never waits is read for so long, then the event loop has a turn. */
const READING_MS = 5;

/** The vector of one text of a stream. */
export interface StreamedVector<E extends Encoding = "float32"> {
  /** Which text of the source, counted from 0. */
  index: number;
  vector: EncodedVector[E];
  /** Whether the text was cut to `maxTokens`. */
  truncated: boolean;
}

/** @throws EmbedderError `INVALID_ARGUMENT` for what cannot be iterated; strings are refused, too. */
export function checkSource(source: unknown): void {
  const isIterable = () =>
    typeof source === "object" && source !== null && (Symbol.iterator in source || Symbol.asyncIterator in source);
  if (!readArgument("source", isIterable)) throw invalid("source", "an iterable or async iterable of texts", source);
}

/** Embeds some texts and gives their vectors as they are ready. */
type EmbedChunk = (texts: TextOrTokens[], signal: AbortSignal, take: (rows: EngineRows) => void) => Promise<void>;

/**
 * Embeds texts as they come, and yields each vector as soon as the engine gives it. Reads ahead by a window, and no further
 * while nobody takes the vectors. A source that gives its texts slowly is not waited for: what is there is computed as soon
 * as nothing else is.
 *
 * @param vocabularySize Token ids are below it.
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
  /** Whether the source has been asked for a text that it has not given yet. */
  #isReading = false;
  /** Neighbouring texts of the source that the engine is given next; the first of them is text `#first`. */
  #texts: TextOrTokens[] = [];
  #characters = 0;
  #first = 0;
  /** Chunks that the engine is at. */
  #computing = 0;
  #ready: { vector: StreamedVector<E>; characters: number }[] = [];
  /** Of texts that were read and whose vectors were not taken yet. */
  readonly #open = { texts: 0, characters: 0 };
  #failure: { error: unknown } | undefined;
  /** Called when there may be something for who takes vectors, and when there is room for who reads. */
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

  /** Reads the source to its end, as fast as vectors are taken. */
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

  /** Drops what is not computed yet, and lets the source clean up. */
  async leave(): Promise<void> {
    this.#leaving.abort();
    if (this.#hasEnded) return;
    const returned = (async () => this.#iterator?.return?.())();
    // A source that is still to give its next text would first do that.
    if (this.#isReading) returned.catch(() => {});
    // The first error is the one that counts.
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
      // It has ended itself: there is nothing to return to.
      this.#iterator = undefined;
      throw new ThrownByCaller(error);
    } finally {
      clearImmediate(nothingAtHand);
      this.#isReading = false;
    }
    throw invalid("source", "an iterator whose next() gives an object", next);
  }

  /**
   * A copy of the token ids that come next: the source may write the following ones to the same memory. They are checked
   * here, where their place in the source is known.
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

  /** Gives the engine what was read, unless it has something to do. */
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

/** As `for await` finds it. @throws EmbedderError `INVALID_ARGUMENT`; ThrownByCaller */
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
