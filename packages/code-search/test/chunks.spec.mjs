/** Chunks: what is cut where and named how, and that no line is lost or doubled. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { chunkFile } from "../lib/chunks.mjs";
import { REPOSITORY } from "./folders.mjs";

/** Fits any function of these tests and no class of them. */
const SMALL = 90;
/** Of several lines, so that windows can overlap. */
const WINDOW = 200;

async function namesOf(file, source, maxTokens = SMALL) {
  return (await chunkFile(file, source, maxTokens)).map(({ name }) => name);
}

const SOURCES = {
  "a.ts": {
    source: `import { x } from "./x.js";

/** A store of things. */
export class Store<T> extends Base {
  readonly items = new Map<string, T>();

  /** Adds one more thing. */
  @logged()
  add(name: string, item: T): void {
    this.items.set(name, item);
    this.changed({ name, item, at: new Date() });
  }

  remove = (name: string): boolean => {
    const found = this.items.delete(name);
    return found && this.changed({ name });
  };
}

export interface Options {
  limit: number;
}

// Finds the best of all.
export const best = async (items: number[]) => {
  return items.toSorted()[0];
};`,
    names: ["", "Store", "Store.add", "Store.remove", "Options", "best"],
  },
  "a.tsx": {
    source: `export function Button({ label }: Props) {
  return <button className="b">{label}</button>;
}
export default () => <Button label="x" />;`,
    names: ["Button", "default"],
  },
  "a.cjs": {
    source: `"use strict";
const fs = require("node:fs");

exports.read = function (file) {
  return fs.readFileSync(file);
};

function* count() {
  yield 1;
}`,
    names: ["", "exports.read", "count"],
  },
  "a.py": {
    source: `"""A module."""
import os

class Parser(Base):
    """Reads things from a file, line by line, until there is nothing."""

    limit = 100

    # Called by everybody.
    @property
    def name(self):
        return os.path.basename(self.file) + " of " + str(self.limit)

    async def read(self, file):
        def inner():
            return 1
        return open(file).read() + str(inner()) + self.name

@cache
def main():
    pass`,
    names: ["", "Parser", "Parser.name", "Parser.read", "main"],
  },
  "a.rs": {
    source: `//! A crate.
use std::fmt;

/// A point of the plane.
#[derive(Debug)]
pub struct Point<T> { x: T, y: T }

impl<T> Display for Point<T> {
    /// As (x, y).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.x, self.y)
    }

    fn other(&self) -> String {
        "a text that makes this impl long enough".to_owned()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn prints() { assert_eq!(Point { x: 1, y: 2 }.to_string(), "(1, 2)"); }
    #[test]
    fn prints_again() { assert_eq!(Point { x: 3, y: 4 }.to_string(), "(3, 4)"); }
}`,
    names: ["", "Point", "Point.fmt", "Point.other", "tests.prints", "tests.prints_again"],
  },
  "a.go": {
    source: `package main

import "fmt"

// Server serves.
type Server struct {
	name string
}

// Handle handles one request.
func (s *Server) Handle(r Request) error {
	return fmt.Errorf("no: %s", s.name)
}

func main() {
	fmt.Println("hello")
}`,
    names: ["", "Server", "Server.Handle", "main"],
  },
};

for (const [file, { source, names }] of Object.entries(SOURCES)) {
  test(`${file}: definitions with their comments, members where a class is too long`, async () => {
    assert.deepEqual(await namesOf(file, source), names);
    assertEachLineOnce(source, await chunkFile(file, source, SMALL));
  });
}

test("comments, decorators and attributes go with what they belong to", async () => {
  const find = async (file, name) =>
    (await chunkFile(file, SOURCES[file].source, SMALL)).find((chunk) => chunk.name === name);
  const add = await find("a.ts", "Store.add");
  assert.match(add.text, /^ {2}\/\*\* Adds one more thing\. \*\/\n {2}@logged\(\)\n {2}add\(/);
  assert.equal(add.startLine, 7);
  assert.equal(add.line, 9);
  assert.match((await find("a.py", "Parser.name")).text, /^ {4}# Called by everybody\.\n {4}@property/);
  assert.match((await find("a.rs", "Point")).text, /^\/\/\/ A point of the plane\.\n#\[derive/);
  assert.match((await find("a.go", "Server.Handle")).text, /^\/\/ Handle handles/);
});

test("a class that fits is one chunk", async () => {
  assert.deepEqual(await namesOf("a.ts", SOURCES["a.ts"].source, 500), ["", "Store", "Options", "best"]);
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
  const source = `${SOURCES["a.ts"].source}\nfunction broken( { return 1 }\n`;
  assert.ok((await namesOf("a.ts", source)).includes("Store.add"));
});

test("nothing comes of nothing", async () => {
  for (const file of ["a.ts", "a.py", "a.txt"]) {
    assert.deepEqual(await chunkFile(file, "", SMALL), []);
    assert.deepEqual(await chunkFile(file, "\n  \n\n", SMALL), []);
  }
});

test("deep nesting and one endless line end", async () => {
  const deep = `x = ${"[".repeat(3000)}${"]".repeat(3000)};\n`;
  assert.equal((await chunkFile("a.js", deep, SMALL)).length, 1);
  assert.equal((await chunkFile("a.txt", "word ".repeat(5000), SMALL)).length, 1);
});

test("in this repository's own sources no line is lost or doubled", async () => {
  const folders = ["src", "src/arch", "src/runtime/onnx", "lib", "cli", "tests/fixtures", "packages/code-search/lib"];
  let files = 0;
  for (const folder of folders) {
    for (const name of readdirSync(path.join(REPOSITORY, folder))) {
      if (!/\.(rs|ts|mjs|py)$/.test(name)) continue;
      const source = readFileSync(path.join(REPOSITORY, folder, name), "utf8");
      for (const maxTokens of [20, 100, 256])
        assertEachLineOnce(source, await chunkFile(name, source, maxTokens), name);
      files++;
    }
  }
  assert.ok(files > 20, `${files} files`);
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
