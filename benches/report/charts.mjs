/** SVG charts that are readable on light and dark pages. Bars, dots and text need no library. */

const LABEL_WIDTH = 300;
const PLOT_WIDTH = 400;
const VALUE_WIDTH = 110;
const ROW = 26;
const BAR = 14;
const TOP = 50;

const STYLE = `
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.note { fill: #59636e; font-size: 12px }
.line { stroke: #d1d9e0 }
.other { fill: #afb8c1; stroke: #818b98 }
.ours { fill: #0969da; stroke: #0969da }
.part-0 { fill: #0969da } .part-1 { fill: #1a7f37 } .part-2 { fill: #bf8700 } .part-3 { fill: #8250df } .part-4 { fill: #cf222e }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .note { fill: #9198a1 }
  .line { stroke: #3d444d }
  .other { fill: #656c76; stroke: #9198a1 }
  .ours { fill: #4493f8; stroke: #4493f8 }
  .part-0 { fill: #4493f8 } .part-1 { fill: #3fb950 } .part-2 { fill: #d29922 } .part-3 { fill: #ab7df8 } .part-4 { fill: #f85149 }
}`;

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const at = (value) => value.toFixed(1);

function text(x, y, content, { kind, anchor } = {}) {
  const attributes = [kind && ` class="${kind}"`, anchor && ` text-anchor="${anchor}"`].filter(Boolean).join("");
  return `<text x="${at(x)}" y="${at(y)}"${attributes}>${escaped(content)}</text>`;
}

function rectangle(x, y, width, kind) {
  return `<rect x="${at(x)}" y="${at(y)}" width="${at(Math.max(width, 1))}" height="${BAR}" rx="2" class="${kind}" stroke="none"/>`;
}

/** Rows under a title; `draw` returns the marks of each row. */
function chart({ title, note, rows, draw, extra = [] }) {
  const width = LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH;
  const height = TOP + rows.length * ROW + extra.length * 20 + 10;
  const marks = rows.flatMap((row, index) => {
    const y = TOP + index * ROW;
    return [text(LABEL_WIDTH - 10, y + 12, row.label, { anchor: "end" }), ...draw(row, y)];
  });
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">`,
    `<title>${escaped(title)}</title>`,
    `<style>${STYLE}\n</style>`,
    text(10, 18, title, { kind: "title" }),
    text(10, 35, note, { kind: "note" }),
    ...marks,
    ...extra.map((line, index) => line(TOP + rows.length * ROW + 14 + index * 20)),
    "</svg>",
  ].join("\n")}\n`;
}

/**
 * Horizontal bars from zero.
 *
 * @param {object} content
 * @param {string} content.title
 * @param {string} content.note what is shown, and in which unit
 * @param {{ label: string, value: number, isOurs: boolean }[]} content.rows
 * @param {(value: number) => string} content.format
 */
export function barChart({ title, note, rows, format }) {
  const most = Math.max(...rows.map(({ value }) => value));
  const draw = ({ value, isOurs }, y) => {
    const width = (PLOT_WIDTH * value) / most;
    return [
      rectangle(LABEL_WIDTH, y, width, isOurs ? "ours" : "other"),
      text(LABEL_WIDTH + width + 8, y + 12, format(value)),
    ];
  };
  return chart({ title, note, rows, draw });
}

/**
 * Two points for each row on a logarithmic scale, joined by a line: hollow the first, filled the second.
 *
 * @param {{ title: string, note: string, rows: { label: string, from: number, to: number, isOurs: boolean }[], format: (value: number) => string }} content
 */
export function rangeChart({ title, note, rows, format }) {
  const values = rows.flatMap(({ from, to }) => [from, to]);
  const [least, most] = [Math.log(Math.min(...values)), Math.log(Math.max(...values))];
  const place = (value) => LABEL_WIDTH + 8 + ((PLOT_WIDTH - 16) * (Math.log(value) - least)) / (most - least || 1);
  const draw = ({ from, to, isOurs }, y) => {
    const [start, end] = [place(from), place(to)];
    const kind = isOurs ? "ours" : "other";
    const middle = y + BAR / 2;
    return [
      `<line x1="${at(start)}" x2="${at(end)}" y1="${middle}" y2="${middle}" class="line" stroke-width="3"/>`,
      `<circle cx="${at(start)}" cy="${middle}" r="4.5" class="${kind}" style="fill: none" stroke-width="2"/>`,
      `<circle cx="${at(end)}" cy="${middle}" r="5.5" class="${kind}"/>`,
      text(LABEL_WIDTH + PLOT_WIDTH + 8, y + 12, `${format(from)} – ${format(to)}`),
    ];
  };
  return chart({ title, note, rows, draw });
}

/**
 * Stacked bars of equal width: shares of a whole.
 *
 * @param {{ title: string, note: string, parts: string[], rows: { label: string, values: number[] }[], format: (value: number) => string }} content
 */
export function stackedChart({ title, note, parts, rows, format }) {
  const draw = ({ values }, y) => {
    const whole = values.reduce((total, value) => total + value, 0);
    let x = LABEL_WIDTH;
    const bars = values.map((value, part) => {
      const width = (PLOT_WIDTH * value) / whole;
      const bar = rectangle(x, y, width, `part-${part}`);
      x += width;
      return bar;
    });
    return [...bars, text(LABEL_WIDTH + PLOT_WIDTH + 8, y + 12, format(whole))];
  };
  const legend = (y) => {
    let x = 10;
    return parts
      .map((part, index) => {
        const entry = `<rect x="${at(x)}" y="${y - 10}" width="12" height="12" rx="2" class="part-${index}"/>${text(x + 18, y, part)}`;
        // A letter is about seven wide.
        x += 36 + 7 * part.length;
        return entry;
      })
      .join("\n");
  };
  return chart({ title, note, rows, draw, extra: [legend] });
}
