/**
 * Ranking: each rule decides between some candidates, and all of them together answer questions about the small folder
 * `repository` with a real model.
 */

import assert from "node:assert/strict";
import { cpSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { CodeSearch } from "../index.mjs";
import { pathWeight } from "../lib/paths.mjs";
import { candidatesOf, definitionsFirst, fuse, otherFilesToo, RULES, rank } from "../lib/ranking.mjs";
import { areRelated, searchableText, searchWords, wordsOf } from "../lib/words.mjs";
import { folderWith, STARTER_MODEL, WITHOUT_STARTER_MODEL } from "./folders.mjs";

const REPOSITORY = fileURLToPath(new URL("repository", import.meta.url));

/** Questions and the place of the first hit. */
const ANSWERS = {
  "keep answers of the server": "src/storage/cache.py ResponseCache",
  "server did not answer in time": "src/http/errors.py TimeoutError",
  "status of the answer": "src/http/errors.py StatusError",
  "yields the delay before each attempt": "src/http/retry.py retry_delays",
  "where are users stored": "src/storage/user_store.py UserStore",
  "how are sessions closed": "src/http/session.py Session",
  "watch a folder for changed files": `src/platform/watch_${process.platform === "win32" ? "windows" : "linux"}.c watch_folder`,
  "retry delays": "src/http/retry.py retry_delays",
  "tests of the delays between attempts": "tests/test_retry.py test_each_delay_is_twice_as_long_as_the_one_before",
  "example of a download": "examples/download.py download",
  Session: "src/http/session.py Session",
  ConnectionPool: "src/http/pool.py ConnectionPool",
  "pool.release": "src/http/pool.py ConnectionPool.release",
};

/** @type {(candidate: object) => import("../lib/ranking.mjs").Candidate} */
const candidate = (fields) => ({
  ...{ id: 0, path: "a.js", name: "", isDefinition: false, line: 1, startLine: 1, endLine: 1, text: "", isExact: true },
  ...{ score: 1, similarity: null, ...fields },
});
const noImports = { importsOf: () => 0 };

/** What stands first with each rule, and does not without it. */
const CASES = {
  moreOfFile: {
    question: "how is it done",
    candidates: [
      candidate({ path: "once.js", score: 1 }),
      candidate({ path: "often.js", score: 0.95 }),
      candidate({ path: "often.js", score: 0.9 }),
      candidate({ path: "often.js", score: 0.85 }),
      candidate({ path: "other.js", score: 0.3 }),
    ],
    first: "often.js",
  },
  definitionsFirst: {
    question: "parse",
    candidates: [
      candidate({ path: "uses.js", name: "main", isDefinition: true, score: 1 }),
      candidate({ path: "defines.js", name: "Reader.parse", isDefinition: true, score: 0 }),
    ],
    first: "defines.js",
  },
  namesInQuestion: {
    question: "where are sessions deleted when they expire",
    candidates: [
      candidate({ path: "a.js", name: "run", isDefinition: true, score: 1 }),
      candidate({ path: "b.js", name: "deleteExpired", isDefinition: true, score: 0.95 }),
    ],
    first: "b.js",
  },
  fileNamesInQuestion: {
    question: "how are requests authenticated",
    candidates: [candidate({ path: "a.js", score: 1 }), candidate({ path: "auth.js", score: 0.9 })],
    first: "auth.js",
  },
  importedOften: {
    question: "how is it done",
    candidates: [candidate({ path: "leaf.js", score: 1 }), candidate({ path: "core.js", score: 0.97 })],
    database: { importsOf: (stem) => (stem === "core" ? 15 : 0) },
    first: "core.js",
  },
  codeBeforeTheRest: {
    question: "how is it done",
    candidates: [candidate({ path: "test/a.test.js", score: 1 }), candidate({ path: "src/a.js", score: 0.6 })],
    first: "src/a.js",
  },
  otherFilesToo: {
    question: "how is it done",
    candidates: [
      candidate({ path: "a.js", line: 1, score: 1 }),
      candidate({ path: "a.js", line: 9, score: 0.9 }),
      candidate({ path: "b.js", score: 0.5 }),
    ],
    first: "a.js b.js",
  },
};

test("each rule has its case", () => {
  assert.deepEqual(
    RULES.map(({ name }) => name),
    Object.keys(CASES),
  );
});

for (const [name, { question, candidates, database = noImports, first }] of Object.entries(CASES)) {
  test(`${name} decides`, () => {
    const rule = RULES.find((rule) => rule.name === name);
    const files = (/** @type {import("../lib/ranking.mjs").Rule[]} */ rules) =>
      rank(candidates, question, database, rules)
        .map(({ path }) => path)
        .join(" ");
    assert.ok(rule && files([rule]).startsWith(first), rule && files([rule]));
    assert.ok(!files([]).startsWith(first), "the same without it");
  });
}

describe("questions about a small folder", { skip: WITHOUT_STARTER_MODEL }, () => {
  /** @type {CodeSearch} */
  let codeSearch;
  before(async () => {
    const dir = folderWith();
    cpSync(REPOSITORY, dir, { recursive: true });
    codeSearch = await CodeSearch.open(dir, { model: STARTER_MODEL, backend: "onnx" });
    await codeSearch.update();
    await codeSearch.refine();
  });
  after(() => codeSearch.close());

  async function wrongAnswers(rules) {
    const wrong = [];
    for (const [question, expected] of Object.entries(ANSWERS)) {
      const candidates = await candidatesOf({ ...codeSearch, question });
      const [{ path, name }] = rank(candidates, question, codeSearch.database, rules);
      if (`${path} ${name}` !== expected) wrong.push(`${question}: ${path} ${name}`);
    }
    return wrong;
  }

  test("are all answered", async () => assert.deepEqual(await wrongAnswers(RULES), []));

  // The others decide between names that nobody else mentions, and about what comes second.
  for (const rule of RULES.filter((rule) => rule !== definitionsFirst && rule !== otherFilesToo)) {
    test(`are not, without ${rule.name}`, async () => {
      const wrong = await wrongAnswers(RULES.filter((other) => other !== rule));
      assert.notDeepEqual(wrong, []);
    });
  }

  test("come from different files", async () => {
    const { hits } = await codeSearch.search("RequestError", { limit: 3 });
    assert.equal(new Set(hits.map(({ path }) => path)).size, 3);
  });

  test("code like a piece of code", async () => {
    const { hits } = await codeSearch.similar({ path: "src/platform/watch_linux.c", line: 6 });
    assert.equal(hits[0].path, "src/platform/watch_windows.c");
    assert.ok(hits.every(({ path, line }) => path !== "src/platform/watch_linux.c" || line !== 4));
    await assert.rejects(codeSearch.similar({ path: "no/such.c", line: 1 }), {
      name: "RangeError",
      message: /no\/such\.c:1 is not in the index/,
    });
  });
});

test("what is alike is found before vectors are computed", { skip: WITHOUT_STARTER_MODEL }, async () => {
  const dir = folderWith();
  cpSync(REPOSITORY, dir, { recursive: true });
  const codeSearch = await CodeSearch.open(dir, { model: STARTER_MODEL, backend: "onnx" });
  try {
    await codeSearch.update();
    assert.equal(codeSearch.status.exact, 0);
    const { hits, exact } = await codeSearch.similar({ path: "src/platform/watch_linux.c", line: 6 });
    assert.equal(hits[0]?.path, "src/platform/watch_windows.c");
    assert.ok(exact.chunks > 0 && exact.chunks < exact.of, JSON.stringify(exact));
  } finally {
    await codeSearch.close();
  }
});

test("files that are seldom the answer, unless they are asked for", () => {
  const foreign = process.platform === "win32" ? "darwin" : "windows";
  for (const [path, question] of [
    ["tests/test_a.py", "tests of a"],
    ["src/a_test.go", "how is it tested"],
    ["src/a.spec.ts", "the spec of a"],
    ["src/commonTest/kotlin/a.kt", "tests of a"],
    ["examples/a.py", "an example of a"],
    ["docs/a.rs", "documentation of a"],
    ["README.md", "what does the readme say"],
    ["package.json", "settings in json"],
    [`src/${foreign}/a.c`, `how is it done on ${foreign}`],
  ]) {
    assert.ok(pathWeight(path, "how is it done") < 1, path);
    assert.ok(pathWeight(path, question) > pathWeight(path, "how is it done"), path);
  }
  for (const path of ["src/a.py", "lib/contest.py", "src/latest.ts", "app/attestation.go", "src/document.rs"]) {
    assert.equal(pathWeight(path), 1, path);
  }
});

test("fusion: what both rankings know comes first", () => {
  const fused = fuse([
    [1, 2, 3],
    [4, 3],
  ]);
  assert.deepEqual(fused.map(([id]) => id).slice(0, 1), [3]);
  assert.equal(fused[0][1], 1 / 63 + 1 / 62);
  assert.deepEqual(new Map(fused).get(1), 1 / 61);
  assert.deepEqual(fuse([[], []]), []);
});

test("compound names are found by their parts", () => {
  assert.equal(searchableText("embedQuery(HTTPServer, x_y)"), "embedQuery(HTTPServer, x_y) embed Query HTTP Server");
  assert.deepEqual(searchWords('Where is the "embedQuery" AND NEAR(x)?'), [
    "embedquery",
    "near",
    "x",
    "embed",
    "query",
  ]);
  assert.deepEqual(searchWords("what is this"), ["what", "is", "this"]);
  assert.deepEqual(searchWords("?!"), []);
  assert.deepEqual(wordsOf("parse_HTTPRequest2"), ["parse", "http", "request2"]);
});

test("words of one family", () => {
  for (const [a, b] of [
    ["impl", "implementations"],
    ["serializer", "serialize"],
    ["auth", "authenticated"],
    ["a", "a"],
  ]) {
    assert.ok(areRelated(a, b) && areRelated(b, a), `${a} and ${b}`);
  }
  for (const [a, b] of [
    ["request", "response"],
    ["read", "real"],
    ["in", "input"],
    ["contest", "continue"],
  ]) {
    assert.ok(!areRelated(a, b), `${a} and ${b}`);
  }
});
