/**
 * What every JavaScript driver shares. A driver is started with one argument, its setup as JSON, and first introduces itself;
 * then it reads one request per line and answers each with one line of JSON. `protocol.py` is the same in Python, and
 * `../contestants/contestant.mjs` the other side.
 *
 * A request names a list of texts and a part of it, `{ want, texts, from, to }`. `WANTED` has what it can ask for.
 */

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";

/**
 * @typedef {object} Driver
 * @property {string} name with versions
 * @property {"cpu" | "gpu"} device
 * @property {(texts: string[]) => Promise<ArrayLike<number>[]>} embed
 * @property {(text: string) => Promise<unknown>} [embedQuery] where it is not `embed` of one text
 * @property {(texts: string[]) => void} [prepare] work that is not measured
 * @property {object} [details] added to the introduction
 * @property {(request: object, texts: string[]) => unknown} [answer] requests that only this driver knows
 */

const WANTED = {
  vectors: async ({ embed }, texts) => (await embed(texts)).map((vector) => Array.from(vector)),

  /** One call with all texts; seconds of the clock and of all processors together. */
  seconds: async ({ embed }, texts) => {
    const cpuBefore = process.cpuUsage();
    const start = performance.now();
    await embed(texts);
    const wall = (performance.now() - start) / 1000;
    const { user, system } = process.cpuUsage(cpuBefore);
    return { wall, cpu: (user + system) / 1e6 };
  },

  /** Seconds of each text, one after the other. */
  latencies: async (driver, texts) => {
    const seconds = [];
    for (const text of texts) {
      const start = performance.now();
      await driver.embedQuery(text);
      seconds.push((performance.now() - start) / 1000);
    }
    return seconds;
  },

  /**
   * Seconds of each text while one call with `bulk` texts runs; the next one is due `pauseMs` after an answer. Counted from
   * when it is due, since a blocked event loop delays the query itself.
   */
  busy: (driver, texts, { bulk, pauseMs }) => queriesDuring(driver, texts, pauseMs, driver.embed(bulk)),

  /** The same beside threads that only count. */
  busyBesideCounting: async (driver, texts, { threads, seconds, pauseMs }) => {
    const { ended } = await startCounting(threads, seconds);
    return queriesDuring(driver, texts, pauseMs, ended);
  },

  /** How late the event loop was while one call with all texts ran. */
  delay: ({ embed }, texts) => loopDelay(() => embed(texts)),

  /** The same beside threads that only count. */
  delayBesideCounting: async (_driver, _texts, { threads, seconds }) => {
    const { ended } = await startCounting(threads, seconds);
    return loopDelay(() => ended);
  },
};

/**
 * So many threads that do nothing but count, at the priority of bulk work: what the machine and its scheduler do to
 * whatever runs beside them.
 */
async function startCounting(threads, seconds) {
  const count = `
    require("node:os").setPriority(10);
    for (const end = Date.now() + ${1000 * seconds}; Date.now() < end; );`;
  const workers = Array.from({ length: threads }, () => new Worker(count, { eval: true }));
  // Listened to from the start: short work may be over before anybody waits for its end.
  const ended = Promise.all(workers.map((worker) => once(worker, "exit")));
  await Promise.all(workers.map((worker) => once(worker, "online")));
  return { ended };
}

/** Seconds of each query until `work` is done. */
async function queriesDuring(driver, texts, pauseMs, work) {
  const start = performance.now();
  let end = Number.POSITIVE_INFINITY;
  const working = work.then(() => {
    end = performance.now();
  });
  const seconds = [];
  for (const text of texts) {
    const due = performance.now() + pauseMs;
    await sleep(pauseMs);
    // With nothing beside it, a query does not count.
    if (end < due) break;
    await driver.embedQuery(text);
    seconds.push((performance.now() - due) / 1000);
  }
  await working;
  return { seconds, bulk: (end - start) / 1000 };
}

/** How late the event loop was until `work` was done, in milliseconds, and how long that took in seconds. */
async function loopDelay(work) {
  const histogram = monitorEventLoopDelay({ resolution: 1 });
  histogram.enable();
  // Two turns: the first sample has to be there before the work begins.
  await sleep(20);
  histogram.reset();
  const start = performance.now();
  await work();
  const seconds = (performance.now() - start) / 1000;
  // A loop that was blocked to the end is only seen at its next turn.
  await sleep(5);
  histogram.disable();
  const milliseconds = (nanoseconds) => nanoseconds / 1e6;
  return {
    seconds,
    p50: milliseconds(histogram.percentile(50)),
    p99: milliseconds(histogram.percentile(99)),
    max: milliseconds(histogram.max),
  };
}

/**
 * Runs a driver until its input ends.
 *
 * @param {(setup: object) => Promise<Driver>} load Its error is a refusal: the driver is left out and the message reported.
 */
export async function serve(load) {
  const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
  const setup = JSON.parse(process.argv[2]);
  const lists = JSON.parse(readFileSync(setup.texts, "utf8"));
  let driver;
  try {
    driver = await load(setup);
    driver.embedQuery ??= (text) => driver.embed([text]);
    const first = [lists.first];
    driver.prepare?.(first);
    // The first vector belongs to a cold start.
    await driver.embed(first);
  } catch (error) {
    say({ refused: error.message.split("\n", 1)[0] });
    process.exit();
  }
  say({ name: `${driver.name}, Node.js ${process.version}`, device: driver.device, ...driver.details });
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const list = lists[request.texts];
    const texts = list.slice(request.from ?? 0, request.to ?? list.length);
    const bulk = request.bulk === undefined ? undefined : lists[request.bulk];
    driver.prepare?.(texts);
    if (bulk) driver.prepare?.(bulk);
    try {
      const want = WANTED[request.want];
      say(want ? await want(driver, texts, { ...request, bulk }) : await driver.answer(request, texts));
    } catch (error) {
      say({ failed: error.message });
    }
  }
  // Some runtimes keep threads that would keep the process.
  process.exit();
}

/** Calls `embed` with 32 texts at a time, in their order, as peers without a queue of their own are used. */
export async function in32s(texts, embed) {
  const vectors = [];
  for (let start = 0; start < texts.length; start += 32) vectors.push(...(await embed(texts.slice(start, start + 32))));
  return vectors;
}

/** The rows of a matrix, each scaled to length 1. */
export function unitRows(values, width) {
  return Array.from({ length: values.length / width }, (_, index) => {
    const row = values.subarray(index * width, (index + 1) * width);
    const length = Math.hypot(...row);
    return row.map((value) => value / length);
  });
}
