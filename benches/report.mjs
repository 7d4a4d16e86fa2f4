/** From results to Markdown. */

const MARKS = new Map([
  [true, "yes"],
  [false, "**no**"],
  [null, "not measured"],
]);

function table(head, rows) {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)];
}

export function report({ run, models }) {
  const lines = [
    "# Benchmark",
    "",
    `\`${run.command}\`, ${run.date}, ${run.seconds} s`,
    "",
    `- Machine: ${run.machine}; ${run.threads} threads; load average ${run.load.map((value) => value.toFixed(1)).join(" before, ")} after`,
    `- Code: commit ${run.commit}, Node.js ${run.node}`,
  ];
  for (const { title, engine } of Object.values(models)) {
    if (!engine) continue;
    const rows = engine.rows.map(({ what, target, value, passed }) => [what, target, value, MARKS.get(passed)]);
    lines.push("", `## Engine: ${title}`, "", ...table(["what", "must reach", "measured", "reached"], rows));
  }
  return `${lines.join("\n")}\n`;
}
