/** Progress on a terminal as one line that is written over, elsewhere as a plain line now and then. */

const TERMINAL_INTERVAL_MS = 100;
const PLAIN_INTERVAL_MS = 5000;
const BAR_WIDTH = 30;

export class ProgressLine {
  #last = 0;
  #start = performance.now();

  /** @param {NodeJS.WriteStream} stream */
  constructor(stream) {
    this.stream = stream;
    this.interval = stream.isTTY ? TERMINAL_INTERVAL_MS : PLAIN_INTERVAL_MS;
    if (!stream.isTTY) this.#last = this.#start;
  }

  /** @param {import("./indexing.mjs").Progress} progress */
  show({ done, total, chunks }) {
    const speed = Math.round((1000 * chunks) / (performance.now() - this.#start));
    this.#write(done / Math.max(total, 1), `${done}/${total} files, ${chunks} chunks, ${speed} per second`);
  }

  /** @param {import("semantic-search-native").PullProgress} progress of a model's download */
  showDownload({ done, total }) {
    const megabytes = (bytes) => Math.round(bytes / 1e6);
    this.#write(done / Math.max(total, 1), `${megabytes(done)} of ${megabytes(total)} MB of the model`);
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
    const filled = Math.round(BAR_WIDTH * share);
    const bar = "█".repeat(filled) + "░".repeat(BAR_WIDTH - filled);
    this.stream.write(`\r\x1b[K${`${bar} ${line}`.slice(0, (this.stream.columns ?? 80) - 1)}`);
  }

  /** Takes the line away. */
  clear() {
    if (this.stream.isTTY) this.stream.write("\r\x1b[K");
  }
}
