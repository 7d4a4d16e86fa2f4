/** Pseudo-random numbers, the same in every run of a seed. The algorithm is mulberry32. */
export class Random {
  #state;

  /** @param {...(string | number)} seed */
  constructor(...seed) {
    this.#state = [...seed.join(" ")].reduce((hash, letter) => Math.imul(hash ^ letter.charCodeAt(0), 0x01000193), 7);
  }

  /** A number of at least 0 and below 1. */
  next() {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** An integer of at least 0 and below `limit`. */
  below(limit) {
    return Math.floor(this.next() * limit);
  }

  /** An element of a list. */
  of(list) {
    return list[this.below(list.length)];
  }
}
