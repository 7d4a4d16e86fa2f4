/** From results to Markdown. */

import { PEERS } from "../contestants/registry.mjs";
import { COLUMNS } from "../suites/families.mjs";
import { REFERENCE, speedsOf } from "../suites/peers.mjs";
import { median, quantile, sum } from "./statistics.mjs";

const MARKS = new Map([
  [true, "yes"],
  [false, "**no**"],
  [null, "not measured"],
]);
/** Below it, a peer's vectors count as different. */
const SAME_COSINE = 0.9999;
const SYMBOLS = [700, 25_000];

/** The first column is left-aligned, the others right-aligned unless `align` says otherwise. */
function table(head, rows, align = "r") {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  const rule = head.map((_, i) => (i === 0 || align === "l" ? "---" : "--:"));
  return [line(head), line(rule), ...rows.map(line)];
}

const milliseconds = (seconds) => (1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0);
const megabytes = (bytes) => String(Math.round(bytes / 2 ** 20));

function duration(seconds) {
  return seconds < 100 ? `${seconds.toFixed(1)} s` : `${(seconds / 60).toFixed(1)} min`;
}

const SUITES = {
  engine: { heading: "The engine against its targets", section: engineSection },
  peers: { heading: "What one could use instead", section: peersSection },
  stages: { heading: "Stages", section: stagesSection },
  mlx: { heading: "The addon on MLX beside Python's MLX", section: peersSection },
  processor: { heading: "bfloat16 and int8 on this processor", section: processorSection },
  gpu: { heading: "A GPU beside the CPU", section: gpuSection },
};
const FAMILIES_HEADING = "One model of each family";

/** @param {string[]} charts files that lie beside the report */
export function report(results, charts) {
  const lines = [
    "# Benchmark",
    "",
    "Texts are functions of this repository and of Python's standard library, the same for everybody, tokenization included.",
    ...charts.flatMap((file) => ["", `![${file.replace(".svg", "").replaceAll("-", " ")}](${file})`]),
  ];
  for (const [suite, { heading, section }] of Object.entries(SUITES)) {
    if (Object.keys(results[suite]?.models ?? {}).length === 0) continue;
    lines.push("", `## ${heading}`);
    for (const model of Object.values(results[suite].models)) {
      lines.push("", `### ${model.title}`, "", ...provenance(model.run), "", ...section(model));
    }
  }
  if (results.families) lines.push("", `## ${FAMILIES_HEADING}`, "", ...familiesSection(results.families.models));
  return `${lines.join("\n")}\n`;
}

function provenance({ command, date, seconds, machine, threads, load, commit, node }) {
  return [
    `- Command: \`${command}\`, ${date}, ${duration(seconds)} of it for this`,
    `- Machine: ${machine}; ${threads} threads; load average ${load.map((value) => value.toFixed(1)).join(" before, ")} after`,
    `- Code: commit ${commit}, Node.js ${node}`,
  ];
}

function engineSection({ title, rows, samples }) {
  const cells = rows.map(({ what, target, value, passed }) => [what, target, value, MARKS.get(passed)]);
  const quality = samples.quality?.table ? ["", `#### Quality: ${title}`, "", ...samples.quality.table] : [];
  return [...table(["what", "must reach", "measured", "reached"], cells, "l"), ...quality];
}

function stagesSection({ calls, missing }) {
  if (missing) return [`Left out: ${missing}.`];
  const counts = Object.keys(calls);
  const stages = Object.keys(calls[counts[0]]);
  const head = [
    "stage, ms on one thread",
    ...counts.map((count) => `call with ${count} text${count === "1" ? "" : "s"}`),
  ];
  const cell = (seconds) =>
    seconds < 0.1 ? (1000 * seconds).toPrecision(3) : Math.round(1000 * seconds).toLocaleString("en");
  return [
    ...table(
      head,
      stages.map((stage) => [stage, ...counts.map((count) => cell(calls[count][stage]))]),
    ),
    "",
    "The rest of the forward pass is what the whole takes beyond its matrix products, each timed alone: it may drown in noise.",
  ];
}

function peersSection({ peers, preloaded }) {
  const all = Object.entries(peers);
  const speeds = speedsOf(peers);
  const present = all.filter(([name]) => speeds[name]);
  const counts = Object.keys(present[0]?.[1].equal ?? {});
  const throughput = present.map(([name, peer]) => {
    const { embedded, speed, ratio, ratios } = speeds[name];
    return [
      peer.title,
      ...counts.map((count) => milliseconds(median(peer.equal[count]) / Number(count))),
      embedded.toLocaleString("en"),
      speed.toFixed(1),
      ...SYMBOLS.map((count) => duration(count / speed)),
      ratio === 1
        ? "1"
        : `${ratio.toFixed(2)} (${quantile(ratios, 0.25).toFixed(2)}–${quantile(ratios, 0.75).toFixed(2)})`,
    ];
  });
  const latency = present.map(([, peer]) => [
    peer.title,
    duration(median(peer.coldStarts)),
    milliseconds(median(peer.queries)),
    milliseconds(quantile(peer.queries, 0.95)),
    peer.busy.length > 0 ? milliseconds(quantile(peer.busy, 0.95)) : "–",
    megabytes(median(peer.memory.map(({ peak, now }) => peak ?? now))),
    peer.cosines.fitting.toFixed(4),
    peer.cosines.cut.toFixed(4),
  ]);
  const others = present.filter(([, { cosines }]) => Math.min(cosines.fitting, cosines.cut) < SAME_COSINE);
  return [
    ...table(
      [
        "peer",
        ...counts.map((count) => `batch ${count}, ms per text`),
        "symbols embedded",
        "texts/s",
        ...SYMBOLS.map((count) => `${count.toLocaleString("en")} symbols¹`),
        "times ours²",
      ],
      throughput,
    ),
    "",
    ...table(
      [
        "peer",
        "start to first vector",
        "query p50, ms",
        "p95, ms",
        "p95 while indexing³, ms",
        "most memory, MB",
        "least cosine⁴",
        "of long texts",
      ],
      latency,
    ),
    "",
    "¹ Extrapolated where fewer were embedded. ² Time for the same texts, in brackets the middle half of its parts.",
    "³ Counted from when the query is due; Python's peers are synchronous. ⁴ To our float32 vectors, which the tests prove",
    "equal to those of `transformers`: of texts within the token limit, and of longer ones.",
    ...others.map(
      ([name, { title: who }]) => `\n**${who}** gives other vectors: ${PEERS[name].difference ?? "not known why"}.`,
    ),
    ...(preloaded ? [`\nBLAS of both: \`LD_PRELOAD=${preloaded}\`.`] : []),
    "",
    ...introductions(peers),
  ];
}

/** Who was measured, and who was not. */
function introductions(peers) {
  const all = Object.values(peers);
  const names = all.flatMap(({ introduction: { name } }) => name ?? []);
  const refused = all.filter(({ introduction }) => introduction.refused);
  return [
    `Versions: ${[...new Set(names)].join("; ")}.`,
    ...refused.map(({ title, introduction }) => `\nLeft out: ${title}: ${introduction.refused}.`),
  ];
}

function processorSection({ peers, processor: { name: processor, flags } }) {
  const speeds = speedsOf(peers);
  const rounds = speeds[REFERENCE].ratios.length;
  const rows = Object.entries(speeds).map(([name, { speed, ratios }]) => {
    const { title, cosines, queries } = peers[name];
    const faster = (share) => (1 / quantile(ratios, 1 - share)).toFixed(2);
    return [
      title,
      speed.toFixed(1),
      name === REFERENCE ? "1" : `${faster(0.5)} (${faster(0.25)}–${faster(0.75)})`,
      Math.min(cosines.fitting, cosines.cut).toFixed(4),
      name.startsWith("ours") ? milliseconds(median(queries)) : "–",
    ];
  });
  const instructions = Object.entries(flags ?? {}).map(([flag, has]) => `${flag} ${has ? "yes" : "no"}`);
  return [
    `Processor: ${[processor, ...instructions].join(", ")}.`,
    "",
    ...table(["peer", "texts/s", "times as fast as our float32¹", "least cosine²", "query p50³, ms"], rows),
    "",
    `¹ For the same texts; the median of ${rounds} rounds, in brackets their middle half. ² To our float32 vectors. ³ Of about`,
    "ten tokens, alone; the others are set up for throughput.",
    "",
    ...introductions(peers),
  ];
}

function gpuSection({ adapter, peers }) {
  const present = Object.entries(peers).filter(([, { seconds }]) => Object.keys(seconds).length > 0);
  const [, { seconds: onCpu }] = present.find(([name]) => name === REFERENCE);
  const rows = Object.entries(onCpu).flatMap(([length, counts]) =>
    Object.keys(counts).map((count) => [
      length,
      count,
      ...present.map(([name, { seconds }]) => {
        const time = median(seconds[length][count]);
        const speed = `${(Number(count) / time).toFixed(1)}`;
        return name === REFERENCE ? speed : `${speed} (${(median(counts[count]) / time).toFixed(2)})`;
      }),
    ]),
  );
  const cosines = present.map(
    ([
      ,
      {
        title,
        cosines: { fitting, cut },
      },
    ]) => `${title} ${Math.min(fitting, cut).toFixed(6)}`,
  );
  return [
    `GPU: ${adapter.name}, ${adapter.driver}.`,
    "",
    ...table(["tokens", "batch", ...present.map(([, { title }]) => `${title}, texts/s`)], rows),
    "",
    "In brackets, times as fast as our float32 on the CPU; medians, and the first time left out.",
    `Least cosine to that: ${cosines.join("; ")}.`,
    "",
    ...introductions(peers),
  ];
}

/** One table for all families; those of one command, day and commit share their provenance. */
function familiesSection(models) {
  const all = Object.values(models);
  const originOf = ({ run: { command, date, commit } }) => [command, date, commit].join();
  const runs = [...new Set(all.map(originOf))].map((origin) => all.filter((model) => originOf(model) === origin));
  const origins = runs.flatMap((group, i) => {
    const run = group[0].run;
    const seconds = sum(group.map((model) => model.run.seconds));
    const who = runs.length > 1 ? [...(i > 0 ? [""] : []), `${group.map(({ title }) => title).join(", ")}:`, ""] : [];
    return [...who, ...provenance({ ...run, seconds, load: [run.load[0], group.at(-1).run.load[1]] })];
  });
  const rows = all.map(({ title, parameters, peers, refused }) => {
    const speeds = speedsOf(peers);
    const cells = COLUMNS.map((name) => {
      const speed = speeds[name];
      if (!speed) return refused[name] ?? (peers[name] ? "left out" : "not measured");
      if (name === REFERENCE) return `${speed.speed.toFixed(1)} texts/s`;
      const { fitting, cut } = peers[name].cosines;
      const ofCut = cut < fitting ? `, of texts that are too long ${cut.toFixed(4)}` : "";
      return `${speed.ratio.toFixed(2)}, cosine ${fitting.toFixed(4)}${ofCut}`;
    });
    return [title, `${(parameters / 1e6).toFixed(1)} M`, ...cells];
  });
  const measured = all.flatMap(({ peers }) => Object.values(peers));
  const names = measured.flatMap(({ introduction: { name } }) => name ?? []);
  const leftOut = measured.flatMap(({ title, introduction: { refused } }) => (refused ? `${title}: ${refused}` : []));
  return [
    ...origins,
    "",
    ...table(["family", "parameters", ...COLUMNS.map((name) => PEERS[name].title)], rows, "l"),
    "",
    "Random weights, 384 wide, with 6 layers where there are any; the vocabularies of about a thousand tokens are those of the",
    "tests' small models. Of the others: time for the same texts divided by that of our float32, and the least cosine to its",
    "vectors. Random weights quantize worse than trained ones. Where vectors differ:",
    "",
    ...COLUMNS.flatMap((name) => {
      const { title, difference } = PEERS[name];
      return difference ? [`- ${title}: ${difference}.`] : [];
    }),
    "",
    `Versions: ${[...new Set(names)].join("; ")}.`,
    ...[...new Set(leftOut)].map((line) => `\nLeft out: ${line}.`),
  ];
}
