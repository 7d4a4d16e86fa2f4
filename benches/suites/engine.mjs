/**
 * The engine against its targets: throughput compared with transformers.js and with the limit of the machine, event-loop
 * delay, queries, memory.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { LIMITS, measured, PEERS, startPeer } from "../contestants/registry.mjs";
import { median, quantile, sum } from "../report/statistics.mjs";
import { compareVectors } from "./agreement.mjs";
import { measureQuality, qualityTable } from "./quality.mjs";
import { measureServe } from "./serve.mjs";

/** Longer than thread pools spin after work, so that the next contestant finds the processors free. */
const PAUSE_MS = 60;

/** `DELAY_RUNS` runs of which the median counts; at most `BUSY_RUNS` until there are enough queries. */
const DELAY_RUNS = 3;
const BUSY_RUNS = 5;

/**
 * @typedef {object} Row
 * @property {string} what
 * @property {string} target
 * @property {string} value
 * @property {boolean | null} passed `null` where it could not be measured
 */

/**
 * @param {object} job
 * @param {import("../models/prepare.mjs").Model} job.model
 * @param {string} job.texts file of the lists
 * @param {{ [name: string]: string[] }} job.lists
 * @param {number} job.maxTokens
 * @param {object} job.sizes
 * @param {(line: string) => void} job.progress
 * @returns {Promise<{ rows: Row[], samples: object }>}
 */
export async function measureEngine(job) {
  const samples = {};
  const rows = [];
  for (const [name, measure] of Object.entries(MEASUREMENTS)) {
    job.progress(`${job.model.name}: ${name}`);
    const outcome = await measure(job);
    samples[name] = outcome.samples;
    rows.push(...outcome.rows);
  }
  return { rows, samples };
}

const MEASUREMENTS = { throughput, eventLoop, queries, workers, growth, close, serve, quality };

function start(job, peer, settings) {
  const { model, texts, maxTokens } = job;
  return startPeer(peer, { model, texts, maxTokens, ...settings });
}

/** Starts several contestants, passes those that work to `use`, and ends them. */
async function withContestants(job, peers, use) {
  const started = {};
  const refused = {};
  try {
    for (const [name, peer] of Object.entries(peers)) {
      const contestant = await start(job, peer);
      if (contestant.introduction.refused) refused[name] = contestant.introduction.refused;
      else started[name] = contestant;
    }
    return await use(started, refused);
  } finally {
    for (const contestant of Object.values(started)) await contestant.end();
  }
}

/** Who is compared in the throughput rows, by role. */
export const CONTESTANTS = {
  ours: "ours-f32",
  int8: "ours-int8",
  products: "products",
  peer: "transformers.js",
  peerQ8: "transformers.js-q8",
};

const NOT_ON_THIS_MODEL = { samples: null, rows: [] };

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const milliseconds = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.1 ? 2 : 0)} ms`;
const megabytes = (bytes) => `${Math.round(bytes / 2 ** 20)} MB`;

/** The contestants take turns at the same part of the functions, part after part. */
async function throughput(job) {
  const { functions: texts, chunk, npm } = job.sizes;
  const names = Object.entries(CONTESTANTS).filter(([, name]) => npm || !name.startsWith("transformers"));
  const peers = Object.fromEntries(names.map(([role, name]) => [role, PEERS[name] ?? LIMITS[name]]));
  return withContestants(job, peers, async (contestants, refused) => {
    const cosines = await compareVectors(Object.keys(contestants), "ours", (name, request) =>
      contestants[name].ask(request),
    );
    const chunks = Object.fromEntries(Object.keys(contestants).map((role) => [role, []]));
    const order = Object.keys(contestants);
    for (let from = 0; from < texts; from += chunk) {
      for (const role of order) {
        await sleep(PAUSE_MS);
        const request = { want: "seconds", texts: "functions", from, to: Math.min(from + chunk, texts) };
        chunks[role].push(await contestants[role].ask(request));
      }
      // Another one begins each time.
      order.push(order.shift());
    }
    return { samples: { texts, chunks, refused, cosines }, rows: throughputRows(chunks, refused, texts) };
  });
}

function throughputRows(samples, refused, functions) {
  const total = (name, time = "wall") => sum(samples[name].map((part) => part[time]));
  const speed = (name) => `${(functions / total(name)).toFixed(1)} texts/s`;
  const against = (what, target, name, other, asRatio = (ratio) => `${ratio.toFixed(2)}×`) => {
    const missing = [name, other].find((one) => !samples[one]);
    const row = { what, target: `≥ ${asRatio(target)}` };
    if (missing) return { ...row, value: refused[missing] ?? "not in this run", passed: null };
    // Above 1, `name` is faster.
    const ratio = total(other) / total(name);
    const parts = samples[name].map(({ wall }, i) => samples[other][i].wall / wall);
    const spread = `${asRatio(Math.min(...parts))} to ${asRatio(Math.max(...parts))}`;
    // Less affected by other work on the machine.
    const cpu = asRatio(total(other, "cpu") / total(name, "cpu"));
    const value = `${asRatio(ratio)} (parts: ${spread}; of processor time ${cpu}; ${speed(name)} against ${speed(other)})`;
    return { ...row, value, passed: ratio >= target };
  };
  return [
    against("float32 throughput against transformers.js", 2.3, "ours", "peer"),
    against("float32 throughput against the matrix products alone", 0.9, "ours", "products", percent),
    against("int8 throughput against transformers.js q8", 2.3, "int8", "peerQ8"),
    against("int8 throughput against our float32", 1.5, "int8", "ours"),
  ];
}

async function eventLoop(job) {
  const count = job.sizes.delayTexts;
  if (count === 0) return NOT_ON_THIS_MODEL;
  return withContestants(job, { ours: PEERS["ours-f32"] }, async ({ ours }) => {
    const samples = { embedding: [], counting: [] };
    for (let run = 0; run < DELAY_RUNS; run++) {
      const embedding = await ours.ask({ want: "delay", texts: "functions", to: count });
      const { threads } = measured;
      const { seconds } = embedding;
      const counting = await ours.ask({ want: "delayBesideCounting", texts: "functions", to: 0, threads, seconds });
      samples.embedding.push(embedding);
      samples.counting.push(counting);
    }
    const middle = (name) => ({
      p99: median(samples[name].map((s) => s.p99)),
      max: median(samples[name].map((s) => s.max)),
    });
    const { p99, max } = middle("embedding");
    const counting = middle("counting");
    const figures = (delay) => `p99 ${delay.p99.toFixed(2)} ms, max ${delay.max.toFixed(2)} ms`;
    return {
      samples,
      rows: [
        {
          what: `event-loop delay while ${count} texts are embedded`,
          target: "p99 ≤ 5 ms, max ≤ 15 ms",
          value: `${figures({ p99, max })} (medians of ${DELAY_RUNS} runs; beside threads that only count: ${figures(counting)})`,
          passed: p99 <= 5 && max <= 15,
        },
      ],
    };
  });
}

async function queries(job) {
  const { queries: count, busyQueries } = job.sizes;
  const block = 5;
  return withContestants(job, { ours: PEERS["ours-f32"], bare: LIMITS["bare-graph"] }, async ({ ours, bare }) => {
    const samples = { ours: [], bare: [] };
    for (let from = 0; from < count; from += block) {
      for (const [name, contestant] of Object.entries({ ours, bare })) {
        await sleep(PAUSE_MS);
        const request = { want: "latencies", texts: "queries", from, to: Math.min(from + block, count) };
        samples[name].push(...(await contestant.ask(request)));
      }
    }
    samples.cached = await ours.ask({ want: "cached", texts: "queries", to: 1, runs: 200 });
    // Not the queries from before, which are cached. A small model finishes the bulk call after few queries.
    samples.busy = [];
    let asked = count;
    const pauseMs = job.sizes.busyPauseMs;
    for (let run = 0; run < BUSY_RUNS && samples.busy.length < busyQueries; run++) {
      const range = { from: asked, to: count + busyQueries };
      const busy = await ours.ask({ want: "busy", texts: "queries", ...range, bulk: "bulk", pauseMs });
      samples.busy.push(...busy.seconds);
      asked += busy.seconds.length;
    }
    const { threads } = measured;
    const seconds = busyQueries * (pauseMs / 1000 + 2 * median(samples.ours));
    const range = { from: asked, to: asked + busyQueries };
    const counting = { want: "busyBesideCounting", texts: "queries", ...range, threads, seconds, pauseMs };
    samples.besideCounting = (await ours.ask(counting)).seconds;

    const p50 = median(samples.ours);
    const bareP50 = median(samples.bare);
    const cached = median(samples.cached);
    const p95 = quantile(samples.busy, 0.95);
    const besideCounting = milliseconds(quantile(samples.besideCounting, 0.95));
    return {
      samples,
      rows: [
        {
          what: "query p50 against a bare run of the same graph with all threads",
          target: "≤ 1.05 × + 1 ms",
          value: `${milliseconds(p50)} against ${milliseconds(bareP50)} (limit ${milliseconds(bareP50 * 1.05 + 0.001)})`,
          passed: p50 <= bareP50 * 1.05 + 0.001,
        },
        {
          what: "query from the cache",
          target: "≤ 50 µs",
          value: `${(cached * 1e6).toFixed(1)} µs`,
          passed: cached <= 50e-6,
        },
        {
          what: "query p95 while bulk work runs",
          target: "≤ 3 × idle p50",
          value: `${milliseconds(p95)}, ${(p95 / p50).toFixed(2)} × (${samples.busy.length} queries; beside threads that only count: ${besideCounting})`,
          passed: p95 <= 3 * p50,
        },
      ],
    };
  });
}

/** Resident memory with one worker and with all of them, after loading and after work. */
async function workers(job) {
  const samples = {};
  for (const threads of new Set([1, measured.threads])) {
    const contestant = await start(job, PEERS["ours-f32"], { threads });
    const loaded = contestant.memory().now;
    await contestant.ask({ want: "seconds", texts: "functions", to: job.sizes.memoryTexts });
    samples[threads] = { loaded, worked: contestant.memory().now };
    await contestant.end();
  }
  const one = samples[1];
  const all = samples[measured.threads];
  // Each further worker may hold as many activations as the only one did.
  const activations = Math.max(0, one.worked - one.loaded) * (measured.threads - 1);
  const limit = one.worked * 1.1 + activations;
  return {
    samples,
    rows: [
      {
        what: `resident memory, 1 worker against all ${measured.threads}`,
        target: "≤ +10 % plus activations",
        value:
          measured.threads === 1
            ? "this machine has one processor"
            : `${megabytes(one.worked)} against ${megabytes(all.worked)} (limit ${megabytes(limit)}; loaded only: ${megabytes(one.loaded)} against ${megabytes(all.loaded)})`,
        passed: measured.threads === 1 ? null : all.worked <= limit,
      },
    ],
  };
}

/** Resident memory after garbage collection. */
async function settledMemory(contestant) {
  await contestant.ask({ want: "collect", texts: "functions", to: 0 });
  return contestant.memory().now;
}

/** Resident memory from the first thousand texts of random lengths to ten times as many. */
async function growth(job) {
  const all = job.lists.random.length;
  if (all === 0) return NOT_ON_THIS_MODEL;
  const first = all / 10;
  return withContestants(job, { ours: PEERS["ours-f32"] }, async ({ ours }) => {
    const samples = [];
    for (let from = 0; from < all; from += first) {
      await ours.ask({ want: "seconds", texts: "random", from, to: from + first });
      samples.push(await settledMemory(ours));
    }
    const [early, late] = [samples[0], samples.at(-1)];
    return {
      samples,
      rows: [
        {
          what: `growth from text ${first} to text ${all} of random lengths`,
          target: "≤ 5 %",
          value: `${percent(late / early - 1)} (${megabytes(early)} to ${megabytes(late)})`,
          passed: late <= early * 1.05,
        },
      ],
    };
  });
}

async function close(job) {
  return withContestants(job, { ours: PEERS["ours-f32"] }, async ({ ours }) => {
    const samples = [];
    let before = ours.introduction.memoryBeforeLoad;
    // The second time, the libraries are loaded already.
    for (const isFirst of [true, false]) {
      if (!isFirst) await ours.ask({ want: "load", texts: "functions", to: 0 });
      // Loading may continue in the background while the first texts are computed.
      await ours.ask({ want: "seconds", texts: "functions", to: job.sizes.memoryTexts });
      const loaded = await settledMemory(ours);
      await ours.ask({ want: "close", texts: "functions", to: 0 });
      const closed = await settledMemory(ours);
      samples.push({ before, loaded, closed });
      before = closed;
    }
    const [first, second] = samples.map(({ before, loaded, closed }) => (loaded - closed) / (loaded - before));
    const [{ before: empty, loaded, closed }] = samples;
    return {
      samples,
      rows: [
        {
          what: "memory returned by close()",
          target: "≥ 80 % of what load took",
          value: `${percent(first)} (${megabytes(empty)} before, ${megabytes(loaded)} loaded, ${megabytes(closed)} closed); of a second load, which finds the libraries there, ${percent(second)}`,
          passed: first >= 0.8,
        },
      ],
    };
  });
}

async function serve({ model, lists, maxTokens, sizes }) {
  const { serveTexts: count } = sizes;
  if (count === 0) return NOT_ON_THIS_MODEL;
  const texts = Array.from({ length: count }, (_, i) => `${i} ${lists.queries[i % lists.queries.length]}`);
  const samples = await measureServe(model.folder, texts, maxTokens);
  const rows = Object.entries(samples).map(([kind, { atOnce, loads }]) => {
    const { connections, p99, refused } = loads.at(-1);
    const ideal = connections / atOnce;
    const others = loads.map((load) => `${load.connections}: ${load.speed.toFixed(0)}`).join(", ");
    return {
      what: `\`serve\`, ${connections} connections of one ${kind} each: p99`,
      target: "≤ 2 × what they take in one request, none refused",
      value: `${milliseconds(p99)}, ${(p99 / ideal).toFixed(2)} × (${refused} refused; texts/s in one request: ${atOnce.toFixed(0)}, by connections: ${others})`,
      passed: p99 <= 2 * ideal && loads.every((load) => load.refused === 0),
    };
  });
  return { samples, rows };
}

async function quality({ sizes }) {
  if (sizes.qualityPairs === 0) return NOT_ON_THIS_MODEL;
  const row = {
    what: "int8 retrieval, docstring to function",
    target: "MRR@10 within 1 % of float32, every cosine ≥ 0.98",
  };
  try {
    const { rows } = await measureQuality({ pairs: sizes.qualityPairs, package: measured.package, onlyBounded: true });
    const [reference, int8] = ["float32", "int8"].map((name) => rows.find((one) => one.name === name));
    const [mrr, expected, least] = [int8.mrr, reference.mrr, int8.cosine.least].map((value) => value.toFixed(4));
    const value = `MRR@10 ${mrr} against ${expected}; least cosine ${least}`;
    return { samples: { table: qualityTable(rows) }, rows: [{ ...row, value, passed: int8.passed }] };
  } catch ({ message }) {
    return { samples: { missing: message }, rows: [{ ...row, value: message, passed: null }] };
  }
}
