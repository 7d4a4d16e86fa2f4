/** The commands of the second package, `packages/code-search`: with it beside this one, and without. */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { run } from "./support/command_line.mjs";
import { installedPackage, NAME } from "./support/installed_package.mjs";
import { ROOT, temporaryFolder } from "./support/models.mjs";
import * as processes from "./support/processes.mjs";

const PACKAGE = "semantic-search-native-code-search";
const FOLDER = path.join(ROOT, "packages/code-search");
const COMMANDS = ["index", "search", "similar", "watch", "mcp"];
const MODEL = path.join(ROOT, "tests/fixtures/nomic_cls");

test("without the package, its commands are listed, and say where they are", async () => {
  const { stdout: list } = await run(["--help"]);
  for (const command of COMMANDS) {
    assert.match(list, new RegExp(`^ {2}${command} `, "m"));
    const help = await run([command, "--help"]);
    assert.equal(help.status, 0);
    assert.ok(help.stdout.includes(`npm install ${PACKAGE}`));
    assert.deepEqual(await run(["help", command]), help);
    const { status, stdout, stderr } = await run([command, "x", "--limit=1", "."]);
    assert.deepEqual([status, stdout], [2, ""]);
    assert.ok(stderr.startsWith(`error [USAGE]: "${command}" is in the package ${PACKAGE}: npm install ${PACKAGE} `));
  }
  const json = await run(["search", "x", "--json"]);
  assert.equal(JSON.parse(json.stderr).error.code, "USAGE");
});

test("with the package, its commands are this command line's", {
  skip: !existsSync(path.join(FOLDER, "node_modules")) && "packages/code-search is not installed",
}, async () => {
  const user = installedPackage();
  const modules = path.join(user, "node_modules");
  symlinkSync(FOLDER, path.join(modules, PACKAGE), "junction");
  const main = path.join(modules, NAME, "dist/cli/main.js");
  const env = { ...process.env, SEMANTIC_SEARCH_MODEL: MODEL, XDG_CONFIG_HOME: user, APPDATA: user };
  const dir = temporaryFolder();
  mkdirSync(path.join(dir, "src"));
  writeFileSync(path.join(dir, "src/a.js"), "function parseDate(text) {\n  return new Date(text);\n}\n");
  const start = (...args) => processes.runNode([main, ...args], { cwd: dir, env });

  const found = await start("search", "parse a date", "--json", "--limit", "1");
  assert.equal(found.status, 0, found.stderr);
  assert.deepEqual(
    JSON.parse(found.stdout).hits.map(({ path, line }) => `${path}:${line}`),
    ["src/a.js:1"],
  );
  const help = await start("similar", "--help");
  assert.equal(help.status, 0);
  assert.match(help.stdout, /^Usage: semantic-search-native similar \[options\] <file:line> \[dir\]/);
  assert.deepEqual(await start("help", "similar"), help);
  const wrong = await start("search", "x", "--jsn");
  assert.equal(wrong.status, 2);
  assert.match(wrong.stderr, /^error \[USAGE\]: unknown option '--jsn'/);
  const missing = await start("index", "no-such-folder");
  assert.deepEqual([missing.status, missing.stdout], [1, ""]);
  assert.match(missing.stderr, /^error \[ENOTDIR\]: no-such-folder is not a folder\n$/);
});

test("a package that is broken is not said to be missing", async () => {
  const user = installedPackage();
  const broken = path.join(user, "node_modules", PACKAGE);
  mkdirSync(broken);
  writeFileSync(
    path.join(broken, "package.json"),
    JSON.stringify({ name: PACKAGE, exports: { "./command": "./c.mjs" } }),
  );
  writeFileSync(path.join(broken, "c.mjs"), "import 'a-package-that-is-absent';\n");
  const main = path.join(user, "node_modules", NAME, "dist/cli/main.js");
  const { status, stderr } = await processes.runNode([main, "search", "x"]);
  assert.equal(status, 1);
  assert.match(stderr, /^error \[ERR_MODULE_NOT_FOUND\]: .*a-package-that-is-absent/);
});
