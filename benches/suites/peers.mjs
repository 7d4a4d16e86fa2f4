/** The alternatives, with the same weights, texts and token limit: throughput, latency, start, memory. */

import { setTimeout as sleep } from "node:timers/promises";
import { askOrLeaveOut } from "../contestants/contestant.mjs";
import { PEERS, startPeer } from "../contestants/registry.mjs";
import { sum } from "../report/statistics.mjs";
import { compareVectors } from "./agreement.mjs";

const PAUSE_MS = 60;
/** The peer whose vectors are the reference; `npm test` proves them equal to those of `transformers`. */
export const REFERENCE = "ours-f32";

const EVERYBODY = Object.keys(PEERS).filter((name) => !/mlx|webgpu/.test(name));

/**
 * Every round starts all peers as fresh processes. They take turns at each task, so that other work on the machine
 * affects all of them alike.
 *
 * @param {object} job see `engine.mjs`
 * @param {string[]} [names] the peers
 * @param {{ [name: string]: string }} [env]
 */
export async function measurePeers(
  job,
  names = job.sizes.peers ?? (job.sizes.npm ? EVERYBODY : [REFERENCE, "ours-js", "onnxruntime"]),
  env = {},
) {
  const peers = Object.fromEntries(names.map((name) => [name, newRecord(PEERS[name].title)]));
  for (let round = 0; round < job.sizes.rounds; round++) {
    job.progress(`${job.model.name}: peers, round ${round + 1} of ${job.sizes.rounds}`);
    await measureRound(job, peers, round === 0, env);
  }
  return { peers };
}

/**
 * How fast each peer embedded symbols; peers that embedded none are left out. One that did not embed all of them is compared
 * with the reference's time for the same ones.
 *
 * @returns {{ [name: string]: { embedded: number, speed: number, ratio: number, ratios: number[] } }} `speed` in symbols
 *   per second, `ratio` its time divided by the reference's, `ratios` the same for each part
 */
export function speedsOf(peers) {
  const present = Object.entries(peers).filter(([, { symbols }]) => symbols.length > 0);
  if (present.length === 0) return {};
  const [, { symbols: expected }] = present.find(([name]) => name === REFERENCE) ?? present[0];
  const seconds = (parts) => sum(parts.map(({ wall }) => wall));
  const texts = (parts) => sum(parts.map((part) => part.texts));
  return Object.fromEntries(
    present.map(([name, { symbols }]) => {
      const ratio = seconds(symbols) / seconds(expected.slice(0, symbols.length));
      const ratios = symbols.map(({ wall }, i) => wall / expected[i].wall);
      return [name, { embedded: texts(symbols), speed: texts(expected) / seconds(expected) / ratio, ratio, ratios }];
    }),
  );
}

const newRecord = (title) => ({
  title,
  introduction: null,
  cosines: null,
  coldStarts: [],
  equal: {},
  symbols: [],
  queries: [],
  busy: [],
  memory: [],
});

async function measureRound({ model, texts, lists, maxTokens, sizes, progress }, peers, withSymbols, env) {
  const contestants = new Map();
  try {
    for (const [name, peer] of Object.entries(peers)) {
      const contestant = await startPeer(PEERS[name], { model, texts, maxTokens, env });
      peer.introduction = contestant.introduction;
      if (contestant.introduction.refused) continue;
      contestants.set(name, contestant);
      peer.coldStarts.push(contestant.coldStart);
    }
    const ask = (name, request) =>
      askOrLeaveOut(contestants, name, request, (introduction) => {
        peers[name] = { ...newRecord(peers[name].title), introduction };
      });
    // Without ours, the first one: then at least the differences between the others show.
    const reference = contestants.has(REFERENCE) ? REFERENCE : [...contestants.keys()][0];
    const cosines = await compareVectors([...contestants.keys()], reference, ask);
    for (const name of contestants.keys()) peers[name].cosines = cosines[name];

    /** Asks everybody by turns, `times` times, and hands each answer to `keep`; left out is who is in `resting`. */
    const order = [...contestants.keys()];
    const inTurn = async (request, times, keep, resting = new Set()) => {
      for (let time = 0; time < times; time++) {
        for (const name of order.filter((name) => !resting.has(name))) {
          await sleep(PAUSE_MS);
          const answer = await ask(name, request);
          if (answer) keep(peers[name], answer);
        }
        // Another one begins each time.
        order.push(order.shift());
      }
    };
    for (const [count, times] of Object.entries(sizes.equal)) {
      progress(`${model.name}: batches of ${count}`);
      await inTurn({ want: "seconds", texts: `equal-${count}` }, times, ({ equal }, { wall }) => {
        equal[count] ??= [];
        equal[count].push(wall);
      });
    }
    progress(`${model.name}: queries`);
    await inTurn({ want: "latencies", texts: "queries", to: sizes.queries }, 1, ({ queries }, seconds) =>
      queries.push(...seconds),
    );
    if (withSymbols) {
      const count = lists.symbols.length;
      progress(`${model.name}: ${count} symbols`);
      const resting = new Set();
      const parts = Math.ceil(count / sizes.symbolsChunk);
      for (let part = 0; part < sizes.passes * parts; part++) {
        const from = (part % parts) * sizes.symbolsChunk;
        const request = { want: "seconds", texts: "symbols", from, to: Math.min(from + sizes.symbolsChunk, count) };
        const keep = ({ symbols }, { wall }) => symbols.push({ texts: request.to - from, wall });
        await inTurn(request, 1, keep, resting);
        for (const [name, { symbols }] of Object.entries(peers)) {
          // The reference never rests: the others are compared with its times.
          if (name !== reference && sum(symbols.map(({ wall }) => wall)) > sizes.symbolsSeconds) resting.add(name);
        }
      }
    }
    progress(`${model.name}: queries during indexing`);
    for (const name of order) {
      // The others are synchronous and cannot take a query meanwhile.
      if (!PEERS[name].driver?.endsWith(".mjs")) continue;
      const range = { from: sizes.queries, to: sizes.queries + sizes.busyQueries };
      const request = { want: "busy", texts: "queries", ...range, bulk: "bulk", pauseMs: sizes.busyPauseMs };
      const answer = await ask(name, request);
      if (answer) peers[name].busy.push(...answer.seconds);
    }
    for (const [name, contestant] of contestants) peers[name].memory.push(contestant.memory());
  } finally {
    for (const contestant of contestants.values()) await contestant.end();
  }
}
