/** Chunks: what is cut where and named how, and that no line is lost or doubled. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { chunkFile, embeddedText } from "../lib/chunks.mjs";
import { PATTERNS } from "../lib/declarations.mjs";
import { definitionOf, LANGUAGES, languageOf, parserFor } from "../lib/languages.mjs";
import { REPOSITORY, WITHOUT_STARTER_MODEL } from "./folders.mjs";
import { SAMPLES } from "./samples.mjs";
import { starterTokenizer } from "./tokenizer.mjs";

/** Fits any function of these tests and no class of them. */
const SMALL = 90;
/** Of several lines, so that windows can overlap. */
const WINDOW = 200;

async function namesOf(file, source, maxTokens = SMALL) {
  return (await chunkFile(file, source, maxTokens)).map(({ name }) => name);
}

for (const [file, { source, names, others = [] }] of Object.entries(SAMPLES)) {
  test(`${file}: definitions with their comments, members where a class is too long`, async () => {
    const chunks = await chunkFile(file, source, SMALL);
    assert.deepEqual(
      chunks.map(({ name }) => name),
      names,
    );
    assertEachLineOnce(source, chunks);
    for (const name of new Set(names)) {
      const [first] = chunks.filter((chunk) => chunk.name === name);
      assert.equal(first.isDefinition, name !== "" && !others.includes(name), name);
    }
  });
}

test("each language and each kind of declarations has a sample", () => {
  const endings = new Set(Object.keys(SAMPLES).map((file) => path.extname(file)));
  for (const row of [...LANGUAGES, ...PATTERNS]) {
    assert.ok(
      row.endings.some((ending) => endings.has(ending)),
      row.endings.join(" "),
    );
  }
});

test("comments, decorators and attributes go with what they belong to", async () => {
  const find = async (file, name) =>
    (await chunkFile(file, SAMPLES[file].source, SMALL)).find((chunk) => chunk.name === name);
  const add = await find("a.ts", "Store.add");
  assert.match(add.text, /^ {2}\/\*\* Adds one more thing\. \*\/\n {2}@logged\(\)\n {2}add\(/);
  assert.equal(add.startLine, 7);
  assert.equal(add.line, 9);
  assert.match((await find("a.py", "Parser.name")).text, /^ {4}# Called by everybody\.\n {4}@property/);
  assert.match((await find("a.rs", "Point")).text, /^\/\/\/ A point of the plane\.\n#\[derive/);
  assert.match((await find("a.go", "Server.Handle")).text, /^\/\/ Handle handles/);
});

test("a class that fits is one chunk", async () => {
  assert.deepEqual(await namesOf("a.ts", SAMPLES["a.ts"].source, 500), ["", "Store", "Options", "best"]);
});

test("a long function is cut between its statements, each part with its name", async () => {
  const statements = Array.from({ length: 40 }, (_, index) => `  call(${index}, {\n    deep: "${index}",\n  });`);
  const source = `/** Does much. */\nfunction much() {\n${statements.join("\n")}\n}\n`;
  const chunks = await chunkFile("a.js", source, SMALL);
  assert.ok(chunks.length > 5, `${chunks.length} chunks`);
  assertEachLineOnce(source, chunks);
  assert.match(chunks[0].text, /^\/\*\* Does much/);
  for (const { name, text } of chunks) {
    assert.equal(name, "much");
    assert.ok(text.split("call(").length === text.split("});").length, `cut inside of a statement:\n${text}`);
  }
});

test("only the first part of a long definition begins it, below as much of its comment as there is room for", async () => {
  const comment = Array.from({ length: 20 }, (_, index) => ` * Words number ${index} of a long comment.\n`).join("");
  const source = `/**\n${comment} */\nfunction documented() {\n  return 1;\n}\n`;
  const chunks = await chunkFile("a.js", source, SMALL);
  assertEachLineOnce(source, chunks);
  assert.ok(chunks.length > 2, `${chunks.length} chunks`);
  assert.deepEqual(
    chunks.map(({ isDefinition }) => isDefinition),
    chunks.map((_, index) => index === chunks.length - 1),
  );
  assert.match(chunks.at(-1).text, /^ \* Words number 1\d [\s\S]*\n}$/);

  const body = Array.from({ length: 40 }, (_, index) => `  call(${index}, "with words");\n`).join("");
  const long = await chunkFile("a.js", `function long() {\n${body}}\n`, SMALL);
  assert.deepEqual(
    long.map(({ isDefinition }) => isDefinition),
    long.map((_, index) => index === 0),
  );
});

test("a long definition below a long comment and an annotation begins at its name", async () => {
  const comment = Array.from({ length: 20 }, (_, line) => ` * Line ${line} of what is said about the class.`).join(
    "\n",
  );
  const method = (name) => `  fun ${name}(): Int {\n    val value = computeSomething(1, 2, 3)\n    return value\n  }\n`;
  const methods = Array.from({ length: 12 }, (_, number) => method(`method${number}`)).join("\n");
  const source = `/**\n${comment}\n */\n@Suppress("NAMES")\nclass Pinner(\n  val pins: Int,\n) {\n${methods}}\n`;
  const chunks = await chunkFile("a.kt", source, SMALL);
  const defined = chunks.filter(({ isDefinition, name }) => isDefinition && name === "Pinner");
  assert.deepEqual(
    defined.map(({ line }) => source.split("\n")[line - 1]),
    ["class Pinner("],
  );
  assertEachLineOnce(source, chunks);
});

test("the parts of a long function are of about one size", async () => {
  const body = Array.from({ length: 30 }, (_, index) => `  call(${index}, "with words");\n`).join("");
  const lengths = (await chunkFile("a.js", `function long() {\n${body}}\n`, 150)).map(({ text }) => text.length);
  assert.ok(Math.min(...lengths) > 0.5 * Math.max(...lengths), lengths.join(" "));
});

test("clauses of one function are one chunk", async () => {
  const source = `f :: Int -> Int\nf 0 = 1\nf 1 = 2\n\ng :: Int\ng = 1\n`;
  assert.deepEqual(await namesOf("a.hs", source), ["f", "g"]);
  assert.deepEqual(await namesOf("a.erl", "f(0) ->\n  1;\nf(1) ->\n  2.\n\ng() ->\n  1.\n"), ["f", "g"]);
});

test("a node whose type is the name of a property of objects defines nothing", async () => {
  const tree = (await parserFor("a.hs")).parse("some = Just 1\n");
  const [node] = tree.rootNode.descendantsOfType("constructor");
  assert.equal(definitionOf(node, languageOf("a.hs", ""), false), undefined);
  tree.delete();
});

test("a header is C, C++ or Objective-C, as it reads", async () => {
  const members = Array.from({ length: 20 }, (_, index) => `  int member${index}() { return ${index}; }\n`).join("");
  assert.ok((await namesOf("a.h", `class Store {\n${members}};\n`)).includes("Store"));
  assert.deepEqual(await namesOf("a.h", "struct store {\n  int size;\n};\n\nint count(void);\n"), ["store", ""]);
  assert.deepEqual(await namesOf("a.h", "@interface Store\n- (int)size;\n@end\n"), ["Store"]);
});

test("a script is known by what runs it", async () => {
  assert.deepEqual(await namesOf("tool", "#!/bin/sh\nset -e\n\nadd() {\n  echo 1\n}\n"), ["", "add"]);
  assert.deepEqual(await namesOf("tool", "#!/usr/bin/env python3\nimport x\n\ndef add():\n  pass\n"), ["", "add"]);
});

test("what a grammar does not understand is cut at its declarations", async () => {
  const noise = "%% ]] {{ )) is && ;;\n".repeat(4);
  const source = `${noise}\nexport class Store {\n${noise}}\n\nexport function add() {\n${noise}}\n`;
  const names = await namesOf("a.ts", source);
  assert.ok(names.includes("Store") && names.includes("add"), names.join(" "));
});

test("short sections of a text are joined", async () => {
  const source = Array.from({ length: 6 }, (_, index) => `## Part ${index}\n\nA line.\n`).join("\n");
  const chunks = await chunkFile("a.md", `# All\n\n${source}`, SMALL);
  assertEachLineOnce(`# All\n\n${source}`, chunks);
  assert.ok(chunks.length < 6, `${chunks.length} chunks`);
});

test("what is embedded of a chunk begins with its path and name", () => {
  assert.equal(embeddedText("lib/a.js", { name: "f", text: "function f() {}" }), "lib/a.js\nf\nfunction f() {}");
  assert.equal(embeddedText("lib/a.js", { name: "", text: "f();" }), "lib/a.js\nf();");
});

test("one-liners inside of a long function belong to it", async () => {
  const statements = Array.from({ length: 10 }, (_, index) => `  const f${index} = () => call(${index});`);
  const source = `function much() {\n${statements.join("\n")}\n}\nconst top = () => 1;\n`;
  const chunks = await chunkFile("a.js", source, SMALL);
  assertEachLineOnce(source, chunks);
  assert.deepEqual([...new Set(chunks.map(({ name }) => name))], ["much", "top"]);
  assert.ok(chunks.length < 8, `${chunks.length} chunks`);
});

test("a long comment is cut between its lines", async () => {
  const source = `/*\n${" * many words in a row\n".repeat(60)} */\nfunction f() {}\n`;
  const chunks = await chunkFile("a.js", source, SMALL);
  assert.ok(chunks.length > 5);
  assertEachLineOnce(source, chunks);
  assert.equal(chunks.at(-1).name, "f");
});

test("other files are cut into windows that overlap and cover them", async () => {
  const lines = Array.from({ length: 100 }, (_, index) => `line number ${index} of a plain text`);
  const chunks = await chunkFile("notes.txt", lines.join("\r\n"), WINDOW);
  assert.equal(chunks[0].startLine, 1);
  assert.equal(chunks.at(-1).endLine, 100);
  for (const [index, chunk] of chunks.slice(1).entries()) {
    assert.ok(chunk.startLine <= chunks[index].endLine, "overlaps with the window before");
    assert.ok(chunk.startLine > chunks[index].startLine);
    assert.equal(chunk.text, lines.slice(chunk.startLine - 1, chunk.endLine).join("\n"));
  }
});

test("a source that the parser does not understand is cut into windows", async () => {
  const source = "%% nothing ]] of {{ this )) is && TypeScript ;;\n".repeat(100);
  const chunks = await chunkFile("broken.ts", source, WINDOW);
  assert.ok(chunks.length > 3);
  assert.ok(chunks[1].startLine <= chunks[0].endLine);
});

test("a small mistake leaves the other definitions as they are", async () => {
  const source = `${SAMPLES["a.ts"].source}\nfunction broken( { return 1 }\n`;
  assert.ok((await namesOf("a.ts", source)).includes("Store.add"));
});

test("a text that a parser does not get to the end of is cut without it", async () => {
  const source = `  * it's a "text" of many words\n`.repeat(3000);
  const started = performance.now();
  const chunks = await chunkFile("a.lua", source, WINDOW);
  assert.ok(performance.now() - started < 10_000);
  assert.ok(chunks.length > 100, `${chunks.length} chunks`);
  assert.ok((await namesOf("b.lua", SAMPLES["a.lua"].source)).includes("M.add"), "the parser is usable afterwards");
});

test("nothing comes of nothing", async () => {
  for (const file of ["a.ts", "a.py", "a.txt"]) {
    assert.deepEqual(await chunkFile(file, "", SMALL), []);
    assert.deepEqual(await chunkFile(file, "\n  \n\n", SMALL), []);
  }
  assert.equal((await chunkFile("a.c", "#", SMALL)).length, 1);
});

test("deep nesting and one endless line end", async () => {
  const deep = `x = ${"[".repeat(3000)}${"]".repeat(3000)};\n`;
  assert.equal((await chunkFile("a.js", deep, SMALL)).length, 1);
  assert.equal((await chunkFile("a.txt", "word ".repeat(5000), SMALL)).length, 1);
});

/** @returns {[string, string][]} paths and sources */
function ownSources() {
  const folders = [
    "src",
    "src/arch",
    "src/runtime/onnx",
    "lib",
    "cli",
    "docs",
    "tests/fixtures",
    "packages/code-search/lib",
  ];
  return folders.flatMap((folder) =>
    readdirSync(path.join(REPOSITORY, folder))
      .filter((name) => /\.(rs|ts|mjs|py|md)$/.test(name))
      .map((name) => /** @type {[string, string]} */ ([`${folder}/${name}`, sourceOf(folder, name)])),
  );
}

/**
 * @param {string} folder
 * @param {string} name
 */
function sourceOf(folder, name) {
  return readFileSync(path.join(REPOSITORY, folder, name), "utf8");
}

test("in this repository's own sources no line is lost or doubled", async () => {
  const sources = ownSources();
  assert.ok(sources.length > 20, `${sources.length} files`);
  for (const [file, source] of sources)
    for (const maxTokens of [20, 256]) assertEachLineOnce(source, await chunkFile(file, source, maxTokens), file);
});

test("no chunk of several lines of them is longer than the model reads", { skip: WITHOUT_STARTER_MODEL }, async () => {
  const tokenizer = starterTokenizer();
  const tooLong = [];
  let chunks = 0;
  for (const [file, source] of ownSources()) {
    for (const chunk of await chunkFile(file, source, 256)) {
      const tokens = tokenizer.encode(embeddedText(file, chunk)).ids.length;
      if (tokens > 256 && chunk.endLine > chunk.startLine) tooLong.push(`${file}:${chunk.startLine} ${tokens}`);
      chunks++;
    }
  }
  assert.ok(chunks > 1000, `${chunks} chunks`);
  assert.deepEqual(tooLong, []);
});

function assertEachLineOnce(source, chunks, file = "") {
  const lines = source.split(/\r?\n/);
  const times = lines.map(() => 0);
  for (const { startLine, endLine, line, text } of chunks) {
    assert.ok(startLine <= line && line <= endLine, `${file}: line ${line} of ${startLine} to ${endLine}`);
    assert.equal(text, lines.slice(startLine - 1, endLine).join("\n"), file);
    for (let row = startLine - 1; row < endLine; row++) times[row]++;
  }
  for (const [row, line] of lines.entries()) {
    if (line.trim() !== "") assert.equal(times[row], 1, `${file}:${row + 1} is in ${times[row]} chunks: ${line}`);
  }
}
