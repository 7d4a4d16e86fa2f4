/** The process of one driver, seen from the benchmark; see `../drivers/protocol.mjs` for what it is asked. */

import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

export class Contestant {
  /** `{ name, device }`, or `{ refused }` with the reason. */
  introduction;
  /** Seconds from the start of the process to its first vector. */
  coldStart;
  #child;
  #lines;

  /**
   * Starts a driver and waits for its first vector.
   *
   * @param {string} program
   * @param {string[]} args
   * @param {{ [name: string]: string | undefined }} [env] added to the environment
   */
  static async start(program, args, env) {
    const contestant = new Contestant();
    const start = performance.now();
    const child = spawn(program, args, { env: { ...process.env, ...env }, stdio: ["pipe", "pipe", "pipe"] });
    contestant.#child = child;
    let complaints = "";
    child.stderr.setEncoding("utf8").on("data", (text) => {
      complaints = (complaints + text).slice(-2000);
    });
    contestant.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const failed = new Promise((resolve) => child.on("error", ({ message }) => resolve({ refused: message })));
    const answer = contestant.#next().catch(() => {
      // The last line of a stack or of an import error says most.
      return {
        refused: `it ended early: ${complaints.trim().split("\n").at(-1) || child.signalCode || child.exitCode}`,
      };
    });
    contestant.introduction = await Promise.race([answer, failed]);
    contestant.coldStart = (performance.now() - start) / 1000;
    return contestant;
  }

  async ask(request) {
    this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    const answer = await this.#next();
    if (answer?.failed) throw new Error(`${this.introduction.name}: ${answer.failed}`);
    return answer;
  }

  /** Resident memory in bytes: now, and where the system tells, the most that it ever was. */
  memory() {
    const { pid } = this.#child;
    if (process.platform === "linux") {
      const status = readFileSync(`/proc/${pid}/status`, "utf8");
      const kilobytes = (key) => Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(status)[1]);
      return { now: kilobytes("VmRSS") * 1024, peak: kilobytes("VmHWM") * 1024 };
    }
    const { stdout } = spawnSync("ps", ["-o", "rss=", "-p", String(pid)], { encoding: "utf8" });
    return { now: Number(stdout) * 1024, peak: null };
  }

  async end() {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null || this.#child.pid === undefined) return;
    const ended = new Promise((resolve) => this.#child.on("close", resolve));
    this.#child.stdin.end();
    await ended;
  }

  async #next() {
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done) throw new Error("the driver ended early");
      // Some libraries print to standard output.
      if (/^[[{]/.test(value)) return JSON.parse(value);
    }
  }
}

/**
 * Asks one of several; one that fails ends and is left out from there on.
 *
 * @param {Map<string, Contestant>} contestants
 * @param {string} name
 * @param {object} request
 * @param {(refusal: { refused: string }) => void} leaveOut
 * @returns {Promise<unknown>} `undefined` from one that is not there or has failed
 */
export async function askOrLeaveOut(contestants, name, request, leaveOut) {
  const contestant = contestants.get(name);
  try {
    return await contestant?.ask(request);
  } catch (error) {
    leaveOut({ refused: error.message });
    contestants.delete(name);
    await contestant.end();
    return undefined;
  }
}
