/** `examples/code-search`, as a user runs it. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, symlinkSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { environment, folderWith, REPOSITORY, TINY_MODEL } from "./folders.mjs";

test("the example prints where a question is answered", () => {
  const user = folderWith({ "project/dates.js": "function parseDate(text) {\n  return new Date(text);\n}\n" });
  mkdirSync(path.join(user, "node_modules"));
  const installed = path.join(user, "node_modules/semantic-search-native-code-search");
  symlinkSync(path.join(REPOSITORY, "packages/code-search"), installed, "junction");
  cpSync(path.join(REPOSITORY, "examples/code-search/search.mjs"), path.join(user, "search.mjs"));
  const stdout = execFileSync(process.execPath, ["search.mjs", "project", "parse a date"], {
    cwd: user,
    env: environment({ SEMANTIC_SEARCH_MODEL: TINY_MODEL }),
    encoding: "utf8",
  });
  assert.equal(stdout, "dates.js:1  parseDate\n");
});
