import type { EngineResult } from "./engine.js";

/** The vectors of an embedder's most recent queries: a search box sends the same ones again and again. */
export class QueryCache {
  /** How many queries were answered from it. */
  hits = 0;
  readonly #size: number;
  /** Least recently used first: a `Map` keeps the order of insertion. */
  readonly #results = new Map<string, EngineResult>();

  /** @param size Most queries to keep; 0 turns the cache off. */
  constructor(size: number) {
    this.#size = size;
  }

  /** A copy of what was computed for this query: the caller may change its vector. */
  get(query: string): EngineResult | undefined {
    const result = this.#results.get(query);
    if (!result) return undefined;
    this.hits++;
    this.#results.delete(query);
    this.#results.set(query, result);
    return { ...result, vectors: result.vectors.slice() };
  }

  set(query: string, result: EngineResult): void {
    if (this.#size === 0) return;
    this.#results.delete(query);
    this.#results.set(query, { ...result, vectors: result.vectors.slice() });
    const [oldest] = this.#results.keys();
    if (this.#results.size > this.#size && oldest !== undefined) this.#results.delete(oldest);
  }

  clear(): void {
    this.#results.clear();
  }
}
