/** Progress on a terminal as one line that is written over, elsewhere as a plain line now and then. */

import { grouped, onOneLine } from "./terminal.mjs";

const TERMINAL_INTERVAL_MS = 100;
const PLAIN_INTERVAL_MS = 5000;
const BAR_WIDTH = 30;

/** @typedef {{ done: number, total: number }} Progress */

export class ProgressLine {
  #last = 0;
  #isShown = false;

  /** @param {NodeJS.WriteStream} stream */
  constructor(stream) {
    this.stream = stream;
    this.interval = stream.isTTY ? TERMINAL_INTERVAL_MS : PLAIN_INTERVAL_MS;
    if (!stream.isTTY) this.#last = performance.now();
  }

  /**
   * A listener for progress of something that is counted.
   *
   * @param {string} things what is done, as "files"
   * @returns {(progress: Progress) => void}
   */
  counting(things) {
    const start = performance.now();
    /** @type {number | undefined} */
    let first;
    return ({ done, total }) => {
      first ??= done;
      const speed = Math.round((1000 * (done - first)) / (performance.now() - start));
      const line = `${grouped(done)} of ${grouped(total)} ${things}${speed > 0 ? `, ${grouped(speed)} per second` : ""}`;
      this.#write(done / Math.max(total, 1), line);
    };
  }

  /** @param {Progress} progress of a model's download, in bytes */
  showDownload({ done, total }) {
    const megabytes = (/** @type {number} */ bytes) => Math.round(bytes / 1e6);
    this.#write(done / Math.max(total, 1), `${megabytes(done)} of ${megabytes(total)} MB of the model`);
  }

  /** @param {string} message written above the line */
  say(message) {
    this.clear();
    this.stream.write(`${onOneLine(message)}\n`);
  }

  /** @param {number} share @param {string} line */
  #write(share, line) {
    const now = performance.now();
    if (now - this.#last < this.interval) return;
    this.#last = now;
    if (!this.stream.isTTY) {
      this.stream.write(`${line}\n`);
      return;
    }
    this.#isShown = true;
    const filled = Math.round(BAR_WIDTH * share);
    const bar = "█".repeat(filled) + "░".repeat(BAR_WIDTH - filled);
    this.stream.write(`\r\x1b[K${`${bar} ${line}`.slice(0, (this.stream.columns ?? 80) - 1)}`);
  }

  /** Takes the line away. */
  clear() {
    if (!this.#isShown) return;
    this.#isShown = false;
    this.stream.write("\r\x1b[K");
  }
}
