/** From results to charts: file names and their SVG. */

import { LIMITS, PEERS } from "../contestants/registry.mjs";
import { CONTESTANTS } from "../suites/engine.mjs";
import { speedsOf } from "../suites/peers.mjs";
import { barChart, rangeChart, stackedChart } from "./charts.mjs";
import { median, quantile, sum } from "./statistics.mjs";

const isOurs = (name) => name.startsWith("ours");
const perSecond = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)}`;
const milliseconds = (value) => (value < 10 ? value.toFixed(1) : String(Math.round(value)));
const fastestFirst = (rows) => rows.sort((a, b) => b.value - a.value);

/** @returns {{ [file: string]: string }} */
export function figures({ engine, peers: peersSuite, mlx, stages: stagesSuite }) {
  const files = {};
  for (const [model, { title, samples }] of Object.entries(engine?.models ?? {})) {
    const { chunks, texts } = samples.throughput;
    const rows = Object.entries(chunks).map(([contestant, parts]) => {
      const name = CONTESTANTS[contestant];
      const { title: label } = PEERS[name] ?? LIMITS[name];
      return { label, value: texts / sum(parts.map(({ wall }) => wall)), isOurs: isOurs(name) };
    });
    files[`throughput-${model}.svg`] = barChart({
      title: "Texts per second",
      note: `${texts} functions; ${title}`,
      rows: fastestFirst(rows),
      format: perSecond,
    });
  }
  for (const [suite, measured] of [
    ["peers", peersSuite],
    ["mlx", mlx],
  ]) {
    for (const [model, { title, peers }] of Object.entries(measured?.models ?? {})) {
      const speeds = speedsOf(peers);
      const present = Object.entries(peers).filter(([name]) => speeds[name]);
      if (present.length === 0) continue;
      const most = Math.max(...Object.values(speeds).map(({ embedded }) => embedded));
      files[`${suite}-throughput-${model}.svg`] = barChart({
        title: "Texts per second",
        note: `${most.toLocaleString("en")} functions; ${title}`,
        rows: fastestFirst(
          present.map(([name, peer]) => ({
            label: peer.title,
            value: speeds[name].speed,
            isOurs: isOurs(name),
          })),
        ),
        format: perSecond,
      });
      const asked = present.filter(([, { busy }]) => busy.length > 0);
      if (asked.length === 0) continue;
      files[`${suite}-queries-${model}.svg`] = rangeChart({
        title: "A query, alone and while texts are indexed",
        note: "milliseconds, logarithmic: hollow the median alone, filled the 95th percentile during bulk work",
        rows: asked
          .map(([name, { title: label, queries, busy }]) => ({
            label,
            from: 1000 * median(queries),
            to: 1000 * quantile(busy, 0.95),
            isOurs: isOurs(name),
          }))
          .sort((a, b) => a.to - b.to),
        format: milliseconds,
      });
    }
  }
  const rows = Object.entries(stagesSuite?.models ?? {}).flatMap(([model, { calls = {} }]) =>
    Object.entries(calls).map(([count, stages]) => ({
      label: `${model}, ${count} text${count === "1" ? "" : "s"}`,
      stages,
    })),
  );
  if (rows.length > 0) {
    files["stages.svg"] = stackedChart({
      title: "Where the time of a call goes",
      note: "share of each stage, timed alone on one thread; on the right the whole, in milliseconds",
      parts: Object.keys(rows[0].stages),
      rows: rows.map(({ label, stages }) => ({ label, values: Object.values(stages) })),
      format: (seconds) => milliseconds(1000 * seconds),
    });
  }
  return files;
}
