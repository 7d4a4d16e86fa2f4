/** Grammars: all of them load, every time, and the published package brings those of development packages with it. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { GRAMMAR_PACKAGES, grammarFile } from "../lib/grammars.mjs";
import { LANGUAGES, languageOf, parserFor } from "../lib/languages.mjs";
import { folderWith } from "./folders.mjs";

const start = promisify(execFile);
const LOADER = fileURLToPath(new URL("load-grammars.mjs", import.meta.url));
const BUNDLER = fileURLToPath(new URL("../scripts/bundle-grammars.mjs", import.meta.url));
const STARTS = 10;

test("a process that loads all grammars and nothing else ends, every time", async () => {
  for (let number = 0; number < STARTS; number++) {
    const { stdout } = await start(process.execPath, [LOADER], { timeout: 60_000 });
    assert.equal(stdout.trim(), `${LANGUAGES.length}`);
  }
});

test("each ending has one language, whose parser can be asked for at once from everywhere", async () => {
  const endings = LANGUAGES.flatMap((language) => language.endings);
  assert.equal(new Set(endings).size, endings.length);
  for (const { endings, grammar } of LANGUAGES) assert.equal(languageOf(`a${endings[0]}`, "")?.grammar, grammar);
  const [first, second] = await Promise.all([parserFor("a.go"), parserFor("b.GO")]);
  assert.ok(first);
  assert.equal(first, second);
  assert.equal(await parserFor("a.txt"), undefined);
  assert.equal(grammarFile("none"), undefined);
});

test("grammars of development packages are bundled with their licences", async () => {
  const folder = folderWith();
  await start(process.execPath, [BUNDLER, folder]);
  const expected = Object.keys(GRAMMAR_PACKAGES).flatMap((name) => [
    `tree-sitter-${name}.LICENSE`,
    `tree-sitter-${name}.wasm`,
  ]);
  assert.deepEqual(readdirSync(folder).sort(), expected.sort());
});
