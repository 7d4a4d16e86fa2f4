/** Which files are indexed. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, rmSync, symlinkSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { filesBelow, readSource, walkBelow } from "../lib/files.mjs";
import { folderWith } from "./folders.mjs";

test(".gitignore counts at every level, and the deepest decides", async () => {
  const folder = folderWith({
    ".gitignore": "*.log\n/build/\n!keep.log\nsecret*",
    "a.js": "",
    "a.log": "",
    "keep.log": "",
    "build/out.js": "",
    "src/build/in.js": "",
    "src/.gitignore": "!debug.log\nlocal.js\nvendor/",
    "src/debug.log": "",
    "src/other.log": "",
    "src/local.js": "",
    "src/vendor/a.js": "",
    "local.js": "",
    "lib/secret.txt": "",
  });
  assert.deepEqual(await filesBelow(folder), [
    ".gitignore",
    "a.js",
    "keep.log",
    "local.js",
    "src/.gitignore",
    "src/build/in.js",
    "src/debug.log",
  ]);
});

test(".codesearchignore counts like .gitignore, and may take back what the one beside it leaves out", async () => {
  const folder = folderWith({
    ".gitignore": "*.gen.js\nout/",
    ".codesearchignore": "!api.gen.js\nvendor/\n*.svg",
    "a.js": "",
    "a.gen.js": "",
    "api.gen.js": "",
    "a.svg": "",
    "vendor/a.js": "",
    "out/a.js": "",
    "src/a.js": "",
    "src/b.js": "",
    "src/api.gen.js": "",
    "src/keep.svg": "",
    "src/.codesearchignore": "b.js\n!keep.svg",
  });
  assert.deepEqual(await filesBelow(folder), [
    ".codesearchignore",
    ".gitignore",
    "a.js",
    "api.gen.js",
    "src/.codesearchignore",
    "src/a.js",
    "src/api.gen.js",
    "src/keep.svg",
  ]);
});

test("inside of a repository the .codesearchignore files above count as well", async () => {
  const files = { ".codesearchignore": "*.gen.js", "src/a.js": "", "src/a.gen.js": "" };
  const repository = folderWith(files);
  mkdirSync(path.join(repository, ".git"));
  assert.deepEqual(await filesBelow(path.join(repository, "src")), ["a.js"]);
  assert.deepEqual(await filesBelow(path.join(folderWith(files), "src")), ["a.gen.js", "a.js"]);
});

test("inside of a repository the .gitignore files above count, unless they leave out the folder itself", async () => {
  const files = {
    ".gitignore": "*.gen.js\nout/",
    "src/a.js": "",
    "src/a.gen.js": "",
    "out/a.js": "",
    "out/a.gen.js": "",
  };
  const repository = folderWith(files);
  mkdirSync(path.join(repository, ".git"));
  assert.deepEqual(await filesBelow(path.join(repository, "src")), ["a.js"]);
  assert.deepEqual(await filesBelow(path.join(repository, "out")), ["a.gen.js", "a.js"]);
  const elsewhere = folderWith(files);
  assert.deepEqual(await filesBelow(path.join(elsewhere, "src")), ["a.gen.js", "a.js"]);
});

test("version control, packages, lock files, the index and symbolic links are left out", async () => {
  const folder = folderWith({
    ".git/config": "",
    ".code-search/search.db": "",
    "node_modules/a/index.js": "",
    "package-lock.json": "{}",
    "Cargo.lock": "",
    "src/clock.js": "",
  });
  symlinkSync(path.join(folder, "src"), path.join(folder, "linked"));
  symlinkSync(path.join(folder, "src/clock.js"), path.join(folder, "linked.js"));
  assert.deepEqual(await filesBelow(folder), ["src/clock.js"]);
});

test("binary, huge, machine-written and unreadable files are not read", async () => {
  const folder = folderWith({
    "text.txt": "Grüße",
    "nul.bin": "a\0b",
    "latin1.txt": Uint8Array.of(0x47, 0x72, 0xfc),
    "huge.txt": "a\n".repeat(300_000),
    "minified.js": `${"a();".repeat(2000)}\n`,
  });
  const read = (name) => readSource(path.join(folder, name));
  assert.equal((await read("text.txt")).text, "Grüße");
  for (const name of ["nul.bin", "latin1.txt", "huge.txt", "minified.js", "absent.txt"]) {
    assert.equal(await read(name), undefined, name);
  }
});

test("a folder that vanishes while others are read is skipped, with a warning", async () => {
  const folder = folderWith({ "a/1.js": "", "b/2.js": "", "c/d/3.js": "" });
  const skipped = [];
  const found = [];
  for await (const file of walkBelow(folder, (gone, { code }) => skipped.push(`${gone} ${code}`))) {
    // Whatever comes first: the other ones were listed with it.
    if (found.length === 0) for (const other of ["a", "b", "c"]) if (!file.startsWith(other)) remove(folder, other);
    found.push(file);
  }
  assert.equal(found.length, 1);
  const others = ["a", "b", "c"].filter((name) => !found[0].startsWith(name));
  assert.deepEqual(
    skipped.sort(),
    others.map((name) => `${name} ENOENT`),
  );
});

test("a root that is not there is an error", async () => {
  await assert.rejects(filesBelow(path.join(folderWith(), "gone")), { code: "ENOENT" });
});

const remove = (folder, name) => rmSync(path.join(folder, name), { recursive: true });

test("a named pipe in place of .gitignore or of a source file is not waited for", {
  skip: process.platform === "win32",
}, async () => {
  const folder = folderWith({ "a.js": "let a;" });
  execFileSync("mkfifo", [path.join(folder, ".gitignore"), path.join(folder, "b.js")]);
  assert.deepEqual(await filesBelow(folder), ["a.js"]);
  assert.equal(await readSource(path.join(folder, "b.js")), undefined);
  assert.equal((await readSource(path.join(folder, "a.js"))).text, "let a;");
});
