/** Words: which are looked for. */

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
test("words that are everywhere are left out where they are too many, the rarest first in", () => {
  for (const [scored, rare] of [
    [ROWS / 100, ["rarely"]],
    [ROWS / 10, ["seldom", "rarely"]],
    [2 * ROWS, ["everywhere", "often", "seldom", "rarely"]],
  ]) {
    const expected = all.matching(rare.join(" OR "), 50);
    assert.ok(expected.length >= 20);
    assert.deepEqual(new WordIndex(prepare, scored).withSome(Object.keys(WORDS), 50), expected);
  }
  assert.deepEqual(new WordIndex(prepare, ROWS / 10).withSome(["everywhere", "often"], 20), []);
});

test("words that are nowhere, and none, find nothing", () => {
  for (const index of [all, new WordIndex(prepare, 10)]) {
    assert.deepEqual(index.withSome(["unknown"], 20), []);
    assert.deepEqual(index.withSome([], 20), []);
  }
});
