/** The index behind a server, which answers before it is up to date. */

import { setTimeout as sleep } from "node:timers/promises";
import { Failure, failureOf } from "./failure.mjs";
import { openFolder } from "./opening.mjs";
import { ProgressLine } from "./progress.mjs";
import { grouped } from "./terminal.mjs";
import { untilAborted } from "./watch.mjs";

/** Clients give up after a minute, often. */
const MOST_WAIT_MS = 30_000;

/** Opens an index, brings it up to date, and follows its folder. */
export class LiveIndex {
  /** @type {Promise<{ codeSearch: import("./opening.mjs").CodeSearch, limit: number }> | undefined} */
  #opening;
  /** @type {Promise<void>} */
  #updated = Promise.resolve();
  /** @type {Promise<void>} */
  #following = Promise.resolve();
  #state = "the model is being loaded";

  /**
   * @param {string} folder
   * @param {import("./configuration.mjs").Settings} options
   * @param {AbortSignal} signal
   */
  constructor(folder, options, signal) {
    this.folder = folder;
    this.options = options;
    this.signal = signal;
    this.progress = new ProgressLine(process.stderr);
  }

  /** Does not wait. What goes wrong is said to whoever asks. */
  start() {
    this.#open().catch(() => {});
  }

  /** Opens it once; again after a failure, whose reason may be gone. */
  #open() {
    this.#opening ??= openFolder(this.folder, this.options, this).then(
      (opened) => {
        this.#follow(opened.codeSearch);
        return opened;
      },
      (error) => {
        this.#opening = undefined;
        if (!this.signal.aborted) this.progress.say(`error: ${failureOf(error).message}`);
        throw error;
      },
    );
    return this.#opening;
  }

  /** @param {import("./opening.mjs").CodeSearch} codeSearch */
  #follow(codeSearch) {
    const { signal } = this;
    const onWarning = this.progress.say.bind(this.progress);
    const onProgress = (/** @type {import("./progress.mjs").Progress} */ { done, total }) => {
      this.#state = `(${grouped(done)} of ${grouped(total)} files are read so far)`;
    };
    this.#state = "(the files are being read)";
    let answerable = () => {};
    this.#updated = new Promise((resolve) => {
      answerable = () => resolve(undefined);
    });
    // The other one brings it up to date as well, and may take long.
    const onWait = () => {
      this.#state = "(another process is bringing the index up to date)";
      answerable();
    };
    const work = async () => {
      try {
        await codeSearch.update({ signal, onProgress, onWarning, onWait });
        this.#state = "";
      } finally {
        answerable();
      }
      await codeSearch.watch({ signal, onWarning });
    };
    this.#following = untilAborted(work(), signal).catch((error) => {
      this.#state = `(the index does not follow its folder: ${failureOf(error).message})`;
      this.progress.say(this.#state);
    });
  }

  /** The index, up to date if that does not take long, else as far as it is; `state` says how far. */
  async get() {
    const timer = new AbortController();
    const late = sleep(MOST_WAIT_MS, "late", { signal: timer.signal });
    late.catch(() => {});
    try {
      const opened = await Promise.race([this.#open(), late]);
      if (typeof opened === "string") {
        throw new Failure("NOT_READY", `${this.#state}: ask again in a minute`);
      }
      await Promise.race([this.#updated, late]);
      return { ...opened, state: this.#state };
    } finally {
      timer.abort();
    }
  }

  async close() {
    const opened = await this.#opening?.catch(() => undefined);
    await this.#following;
    await opened?.codeSearch.close();
  }
}
