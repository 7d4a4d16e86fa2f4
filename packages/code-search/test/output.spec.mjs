/** What results look like on a terminal, and elsewhere. */

import assert from "node:assert/strict";
import * as path from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { Style, textOf } from "../cli/hits.mjs";
import { abilities } from "../cli/terminal.mjs";

const HIT = {
  path: "src/a b.js",
  line: 12,
  name: "parseDate",
  snippet: [
    { line: 12, text: "function parseDate(i) {" },
    { line: 13, text: "  return DATE[i]; // \u001b[2J" },
  ],
};
const TERMINAL = { isTTY: true };

test("colors and links are for terminals only, and colors for who wants them", () => {
  const [all, none] = [
    { hasColors: true, hasLinks: true },
    { hasColors: false, hasLinks: false },
  ];
  assert.deepEqual(abilities({ color: true }, TERMINAL, { TERM: "xterm" }), all);
  assert.deepEqual(abilities({ color: true }, TERMINAL, { TERM: "xterm", NO_COLOR: "" }), all);
  assert.deepEqual(abilities({ color: true }, TERMINAL, { NO_COLOR: "1" }), { hasColors: false, hasLinks: true });
  assert.deepEqual(abilities({ color: false }, TERMINAL, {}), { hasColors: false, hasLinks: true });
  assert.deepEqual(abilities({ color: true }, TERMINAL, { TERM: "dumb" }), none);
  assert.deepEqual(abilities({ color: true }, {}, { TERM: "xterm" }), none);
});

test("elsewhere a result is plain text", () => {
  assert.equal(
    textOf(HIT),
    `${path.join("src", "a b.js")}:12  parseDate
    12  function parseDate(i) {
    13    return DATE[i]; // \\u001b[2J`,
  );
});

test("on a terminal, a place is a link and the question's words stand out", () => {
  const style = new Style({ hasColors: true, hasLinks: true }, ["date", "parsedate", "parse", "i"]);
  const [head, first, second] = textOf(HIT, "project", style).split("\n");
  const url = `${pathToFileURL(path.resolve("project/src/a b.js")).href}#12`;
  const place = `\u001b[1m${path.join("project", "src", "a b.js")}\u001b[0m:12`;
  assert.equal(head, `\u001b]8;;${url}\u001b\\${place}\u001b]8;;\u001b\\  parseDate`);
  assert.match(url, /a%20b\.js#12$/);
  const marked = (text) =>
    text.replaceAll("\u001b[1;31m", "<").replaceAll("\u001b[0m", ">").replaceAll("\u001b[2m", "<");
  assert.equal(marked(first), "<    12>  function <parseDate>(<i>) {");
  assert.equal(marked(second), "<    13>    return <DATE>[<i>]; // \\u001b[2J");
});
