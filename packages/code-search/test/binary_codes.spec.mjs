/** Binary codes: the nearest by them are those of a scan of all vectors, whoever has written them. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { DatabaseSync } from "@photostructure/sqlite";
import { BinaryCodes, emptyCodesTable } from "../lib/binary_codes.mjs";
import { folderWith } from "./folders.mjs";

const DIMENSIONS = [64, 100, 384];

/** Pseudo-random vectors that stay the same (xorshift). */
function randomVectors(count, dimension, seed = 1) {
  let state = seed;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state;
  };
  return Array.from({ length: count }, () => Int8Array.from({ length: dimension }, () => next() % 127));
}

/** Components of different sign. */
function distance(a, b) {
  return a.reduce((sum, value, index) => sum + Number(value >= 0 !== b[index] >= 0), 0);
}

function nearestByScan(vectors, query, count) {
  const ids = [...vectors.keys()].sort((a, b) => distance(vectors.get(a), query) - distance(vectors.get(b), query));
  const bound = distance(vectors.get(ids[Math.min(count, ids.length) - 1]), query);
  // Of those that are as far as the last one, any may be taken.
  return { surely: ids.filter((id) => distance(vectors.get(id), query) < bound), bound };
}

const sorted = (ids) => ids.toSorted((a, b) => a - b);

for (const dimension of DIMENSIONS) {
  test(`${dimension} components: written, replaced and taken away by one process, read by another`, () => {
    const file = `${folderWith()}/codes.db`;
    const databases = [new DatabaseSync(file), new DatabaseSync(file)];
    databases[0].exec(`PRAGMA journal_mode = WAL; ${emptyCodesTable("codes")}`);
    const [writer, reader] = databases.map((db) => new BinaryCodes((sql) => db.prepare(sql), "codes"));
    const vectors = new Map();
    const [query] = randomVectors(1, dimension, 7);
    let version = 0;
    for (const [round, seed] of [11, 12, 13, 14].entries()) {
      databases[0].exec("BEGIN IMMEDIATE");
      for (const [index, vector] of randomVectors(400, dimension, seed).entries()) {
        const id = 1 + ((index * 7 + round * 50) % 1500);
        vectors.set(id, vector);
        writer.set(id, vector);
      }
      for (const id of [...vectors.keys()].filter((id) => id % (5 + round) === 0)) {
        vectors.delete(id);
        writer.set(id, undefined);
      }
      writer.write(++version);
      databases[0].exec("COMMIT");
      const { surely, bound } = nearestByScan(vectors, query, 20);
      for (const codes of [writer, reader]) {
        const found = new Set(codes.nearest(query, 20, "made"));
        assert.equal(found.size, 20);
        assert.deepEqual(
          surely.filter((id) => !found.has(id)),
          [],
        );
        assert.ok([...found].every((id) => distance(vectors.get(id), query) <= bound));
      }
    }
    assert.deepEqual(sorted(reader.nearest(query, 5000, "made")), sorted([...vectors.keys()]), "all there are");

    // Another table of the same name.
    databases[0].exec(emptyCodesTable("codes"));
    assert.deepEqual(reader.nearest(query, 20, "anew"), []);
    for (const db of databases) db.close();
  });
}

test("what a transaction has set is forgotten when it is undone", () => {
  const db = new DatabaseSync(":memory:");
  db.exec(emptyCodesTable("codes"));
  const codes = new BinaryCodes((sql) => db.prepare(sql), "codes");
  const [kept, undone] = randomVectors(2, 64);
  codes.set(1, kept);
  codes.write(1);
  codes.set(2, undone);
  codes.discard();
  codes.write(2);
  assert.deepEqual(codes.nearest(undone, 10, "made"), [1]);
});
