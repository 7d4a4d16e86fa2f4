/** Words: what is left out in large indexes does not change what is found first. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { DatabaseSync } from "@photostructure/sqlite";
import { EMPTY_WORDS, WordIndex } from "../lib/word_index.mjs";

const ROWS = 3000;
/** Words and in one of how many rows each is. */
const WORDS = { everywhere: 1, often: 2, seldom: 40, rarely: 150 };

function filled() {
  const db = new DatabaseSync(":memory:");
  db.exec(EMPTY_WORDS);
  const insert = db.prepare("INSERT INTO words (rowid, path, name, text) VALUES (?, ?, ?, ?)");
  for (let row = 1; row <= ROWS; row++) {
    const words = Object.entries(WORDS).flatMap(([word, each]) =>
      (row * 7919) % each === 0 ? Array(1 + ((row * 31) % 3)).fill(word) : [],
    );
    const padding = Array.from({ length: (row * 17) % 23 }, (_, index) => `w${(row * index) % 97}`);
    insert.run(row, "", row % 5 === 0 ? words.join(" ") : "", [...words, ...padding].join(" "));
  }
  return db;
}

const db = filled();
const prepare = (/** @type {string} */ sql) => db.prepare(sql);
const all = new WordIndex(prepare);
const rowsWith = (/** @type {string} */ expression) => new Set(all.matching(expression, ROWS).map(({ id }) => id));

test("rows with a rare word are in the order of their full scores", () => {
  const bounded = new WordIndex(prepare, ROWS / 10);
  for (const words of [
    ["everywhere", "often", "seldom", "rarely"],
    ["everywhere", "seldom"],
    ["often", "rarely", "unknown"],
  ]) {
    const rare = rowsWith(words.filter((word) => !["everywhere", "often"].includes(word)).join(" OR "));
    const expected = all.withSome(words, ROWS).filter((id) => rare.has(id));
    assert.ok(expected.length >= 20);
    assert.deepEqual(bounded.withSome(words, 20), expected.slice(0, 20));
  }
});

test("of frequent words only, rows that have them all come first", () => {
  const bounded = new WordIndex(prepare, ROWS / 10);
  const both = rowsWith("everywhere AND often");
  const found = bounded.withSome(["everywhere", "often"], 20);
  assert.equal(found.length, 20);
  assert.ok(found.every((id) => both.has(id)));
});

test("words that are nowhere, and none, find nothing", () => {
  for (const index of [all, new WordIndex(prepare, 10)]) {
    assert.deepEqual(index.withSome(["unknown"], 20), []);
    assert.deepEqual(index.withSome([], 20), []);
  }
});
