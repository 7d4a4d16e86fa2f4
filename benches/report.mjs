/** From results to Markdown. */

import { PEERS } from "./peers.mjs";
import { median, quantile, sum } from "./statistics.mjs";
import { REFERENCE } from "./suites/peers.mjs";

const MARKS = new Map([
  [true, "yes"],
  [false, "**no**"],
  [null, "not measured"],
]);
/** Below it, a peer's vectors are others than the model's. */
const SAME_COSINE = 0.9999;
const MANY_SYMBOLS = 25_000;

/** The first column is text, the others are figures unless `align` says otherwise. */
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
};

/** @param {string[]} charts files that lie beside the report */
export function report(results, charts) {
  const lines = [
    "# Benchmark",
    "",
    "Texts are functions of this repository and of Python's standard library, the same for everybody, tokenization included.",
    ...charts.flatMap((file) => ["", `![${file.replace(".svg", "").replaceAll("-", " ")}](${file})`]),
  ];
  for (const [suite, { heading, section }] of Object.entries(SUITES)) {
    if (!results[suite]) continue;
    const { run, models } = results[suite];
    lines.push("", `## ${heading}`, "", ...provenance(run), ...Object.values(models).flatMap(section));
  }
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
  return ["", `### ${title}`, "", ...table(["what", "must reach", "measured", "reached"], cells, "l"), ...quality];
}

function stagesSection({ title, calls, missing }) {
  const heading = ["", `### ${title}`, ""];
  if (missing) return [...heading, `Left out: ${missing}.`];
  const counts = Object.keys(calls);
  const stages = Object.keys(calls[counts[0]]);
  const head = [
    "stage, ms on one thread",
    ...counts.map((count) => `call with ${count} text${count === "1" ? "" : "s"}`),
  ];
  const cell = (seconds) => (1000 * seconds).toPrecision(3);
  return [
    ...heading,
    ...table(
      head,
      stages.map((stage) => [stage, ...counts.map((count) => cell(calls[count][stage]))]),
    ),
  ];
}

function peersSection({ title, peers, symbols, preloaded }) {
  const all = Object.entries(peers);
  const present = all.filter(([, peer]) => peer.symbols.length > 0);
  const [, reference] = present.find(([name]) => name === REFERENCE) ?? present[0] ?? [];
  const counts = Object.keys(reference?.equal ?? {});
  // Rounds repeat the same parts.
  const speed = ({ symbols: parts, coldStarts }) => (symbols * coldStarts.length) / sum(parts);

  const throughput = present.map(([, peer]) => {
    const perPart = peer.symbols.map((seconds, i) => seconds / reference.symbols[i]);
    return [
      peer.title,
      ...counts.map((count) => milliseconds(median(peer.equal[count]) / Number(count))),
      speed(peer).toFixed(1),
      duration(symbols / speed(peer)),
      duration(MANY_SYMBOLS / speed(peer)),
      peer === reference
        ? "1"
        : `${(speed(reference) / speed(peer)).toFixed(2)} (${quantile(perPart, 0.25).toFixed(2)}–${quantile(perPart, 0.75).toFixed(2)})`,
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
  const refused = all.filter(([, { introduction }]) => introduction?.refused);
  return [
    "",
    `### ${title}`,
    "",
    ...table(
      [
        "peer",
        ...counts.map((count) => `batch ${count}, ms per text`),
        "texts/s",
        `${symbols} symbols`,
        `${MANY_SYMBOLS.toLocaleString("en")} symbols¹`,
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
    `¹ Extrapolated from the ${symbols}. ² Time for the same texts, in brackets the middle half of its parts. ³ Counted from when the query is due; Python's`,
    "peers are synchronous. ⁴ To our float32 vectors, which the tests prove equal to those of `transformers`:",
    "of texts within the token limit, and of longer ones.",
    ...others.map(
      ([name, { title: who }]) => `\n**${who}** gives other vectors: ${PEERS[name].difference ?? "not known why"}.`,
    ),
    ...(preloaded ? [`\nBLAS of both: \`LD_PRELOAD=${preloaded}\`.`] : []),
    "",
    `Versions: ${present.map(([, { introduction }]) => introduction.name).join("; ")}.`,
    ...refused.map(([, peer]) => `\nLeft out: ${peer.title}: ${peer.introduction.refused}.`),
  ];
}
