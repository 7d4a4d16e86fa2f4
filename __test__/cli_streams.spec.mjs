/** Hostile input and output of commands: control characters, odd inputs, outputs that fail. */

import assert from "node:assert/strict";
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { MAIN, run } from "./support/command_line.mjs";
import { model, ROOT, temporaryFolder } from "./support/models.mjs";
import * as processes from "./support/processes.mjs";

const { printable, progressBar, table } = createRequire(import.meta.url)("../dist/cli/terminal.js");
const POSIX = { skip: process.platform === "win32" && "needs POSIX pipes and devices" };
const LINUX = { skip: process.platform !== "linux" && "needs /dev/full, and script(1) of Linux" };

/** Red, a title for the window, a clear screen by one byte, a line that overwrites, and text that runs backwards. */
const HOSTILE = "a\u001b[31mb\u001b]0;title\u0007c\u009b2Jd\re\u202ef\u2066\u007f";
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not come out.
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/;

function assertHarmless(text) {
  assert.doesNotMatch(text, CONTROL, JSON.stringify(text));
}

/** Runs it on a terminal of its own, both streams together. */
async function onTerminal(args, cwd) {
  const quoted = [process.execPath, MAIN, ...args].map((argument) => `'${argument.replaceAll("'", "'\\''")}'`);
  const { stdout } = await processes.run("script", ["-qec", quoted.join(" "), "/dev/null"], { cwd });
  return stdout.replaceAll("\r\n", "\n").replaceAll("\r\u001b[K", "");
}

test("control characters are shown as JSON escapes; tabs and line feeds stay", () => {
  assert.equal(printable(HOSTILE), "a\\u001b[31mb\\u001b]0;title\\u0007c\\u009b2Jd\\u000de\\u202ef\\u2066\\u007f");
  assert.equal(printable("ü\t日本\n🚀 👩‍👩‍👧"), "ü\t日本\n🚀 👩‍👩‍👧");
  assert.deepEqual(JSON.parse(printable(JSON.stringify({ [HOSTILE]: HOSTILE }))), { [HOSTILE]: HOSTILE });
  assert.equal(table([["a\nb", "c"]]), "a\\nb  c", "a name cannot begin a line");
});

test("only terminal.ts writes to the terminal", () => {
  const folder = path.join(ROOT, "cli");
  for (const name of readdirSync(folder).filter((file) => file.endsWith(".ts") && file !== "terminal.ts")) {
    assert.doesNotMatch(
      readFileSync(path.join(folder, name), "utf8"),
      /std(out|err)\.write|console\.|process\._raw/,
      name,
    );
  }
});

test("a progress bar, drawn in one place", () => {
  assert.equal(progressBar(0), "░".repeat(24));
  assert.equal(progressBar(0.5), "█".repeat(12) + "░".repeat(12));
  assert.equal(progressBar(1), "█".repeat(24));
  const drawing = ["cli", "scripts"].flatMap((folder) =>
    readdirSync(path.join(ROOT, folder))
      .filter((name) => /\.(ts|mjs)$/.test(name))
      .filter((name) => readFileSync(path.join(ROOT, folder, name), "utf8").includes("█")),
  );
  assert.deepEqual(drawing, ["terminal.ts"]);
});

test("standard error gets no control characters from names of files, models and flags", POSIX, async () => {
  const folder = temporaryFolder();
  const file = path.join(folder, `${HOSTILE}\nerror: a line of its own`);
  writeFileSync(file, "a text\n\xff", "latin1");
  const fixture = await model("bert_mean");
  for (const [args, status] of [
    [["embed", fixture, file, "-q"], 1],
    [["embed", fixture, `${file}.gone`], 1],
    [["embed", fixture, path.join(fixture, "config.json"), "-o", `${file}/x`], 1],
    [["embed", `${folder}/${HOSTILE}`, "-"], 1],
    [["pull", HOSTILE], 2],
    [["pull", "org/model", "--offline", "--cache-folder", file], 1],
    [["pull", "org/model", `--endpoint=${HOSTILE}`], 2],
    [["export", `./${HOSTILE}`], 1],
    [["serve", `./${HOSTILE}`], 1],
    [[HOSTILE], 2],
    [["embed", fixture, `--${HOSTILE}`], 2],
    [["embed", fixture, "--pooling", HOSTILE], 2],
  ]) {
    const outcome = await run(args);
    assert.equal(outcome.status, status, outcome.stderr);
    assertHarmless(outcome.stderr);
    assert.match(outcome.stderr, /\\u001b/, args.join(" "));
    for (const line of outcome.stderr.trimEnd().split("\n")) assert.match(line, /^(error \[|\/)/, "a line of its own");
  }
});

test("standard output escapes control characters on a terminal; a pipe gets names unchanged", LINUX, async (t) => {
  const isThere = await processes.run("script", ["--version"]).catch(() => undefined);
  if (isThere?.status !== 0) return t.skip("script(1) is not installed");
  const folder = temporaryFolder();
  const name = "a\u001b[31mb\u009b2J";
  mkdirSync(path.join(folder, name));
  const copy = path.join(folder, name, "model");
  cpSync(await model("bert_mean"), copy, { recursive: true });
  const piped = await run(["export", copy]);
  assert.equal(piped.stdout, `${path.join(copy, "semantic-search-native.onnx")}\n`);
  const shown = await onTerminal(["export", copy]);
  assertHarmless(shown);
  assert.match(shown, /a\\u001b\[31mb\\u009b2J/);
  const json = await onTerminal(["export", copy, "--json"]);
  assertHarmless(json);
  assert.equal(JSON.parse(json).file, path.join(copy, "semantic-search-native.onnx"));
  const diagnosis = await onTerminal(["doctor", path.join(folder, name, "nowhere")]);
  assertHarmless(diagnosis);
  assert.match(diagnosis, /PROBLEM/);
});

test("embed: NUL bytes, inner byte order marks and Unicode separators are text; invalid UTF-8 is reported", async () => {
  const folder = await model("bert_mean");
  const input = Buffer.concat([
    Buffer.from("a\0b\r\n"),
    Buffer.from([0xff, 0xfe, 0x0a]),
    Buffer.from("\ufeffc\u2028d\u0085e\n\r\n\n"),
    Buffer.from([0xed, 0xa0, 0x80, 0x0a]),
    Buffer.from("\0"),
  ]);
  const { status, stdout, stderr } = await run(["embed", folder, "-q"], input);
  assert.equal(status, 1);
  assert.match(stderr, /^stdin:2: not UTF-8\nstdin:6: not UTF-8\nerror \[BAD_LINES\]: 2 lines were skipped/);
  assert.deepEqual(
    stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).line),
    [1, 3, 4, 5, 7],
  );
});

test("embed: a folder or a missing file is refused before anything is loaded", async () => {
  const folder = temporaryFolder();
  for (const [file, code] of [
    [folder, "EISDIR"],
    [path.join(folder, "gone"), "ENOENT"],
  ]) {
    const { status, stderr } = await run(["embed", "./no-such-model", file]);
    assert.equal(status, 1);
    assert.match(stderr, new RegExp(`^error \\[${code}\\]: `));
    assert.ok(stderr.includes(file), stderr);
  }
});

test("embed: a folder as standard input is refused", POSIX, async () => {
  const args = ["-c", 'exec "$0" "$@" < /', process.execPath, MAIN, "embed", "./no-such-model"];
  const { status, stderr } = await processes.run("sh", args);
  assert.deepEqual([status, stderr], [1, "error [EISDIR]: standard input is a folder: name the files in it\n"]);
});

test("embed: reads from a named pipe", POSIX, async () => {
  const fifo = path.join(temporaryFolder(), "pipe");
  assert.equal((await processes.run("mkfifo", [fifo])).status, 0);
  const writer = processes.start("sh", ["-c", 'printf "a\\nb\\n" > "$0"', fifo]);
  const { status, stdout, stderr } = await run(["embed", await model("bert_mean"), fifo]);
  writer.child.kill();
  assert.equal(status, 0, stderr);
  assert.equal(stdout.trim().split("\n").length, 2);
});

test(
  "embed: an output that cannot be written gives a one-line error with its name, and leaves nothing",
  LINUX,
  async () => {
    const fixture = await model("bert_mean");
    const folder = temporaryFolder();
    const input = path.join(folder, "input");
    writeFileSync(input, "a text\n".repeat(2000));
    for (const [output, message] of [
      ["/dev/full", /^error \[INVALID_OUTPUT\]: \/dev\/full/],
      [folder, /^error \[INVALID_OUTPUT\]/],
      [path.join(folder, "nowhere/x.npy"), /^error \[ENOENT\]: cannot write .*nowhere\/x\.npy/],
      [path.join(input, "x.npy"), /^error \[ENOTDIR\]: cannot write .*input\/x\.npy/],
      ["/proc/x.npy", /^error \[E\w+\]: cannot write \/proc\/x\.npy/],
    ]) {
      const { status, stdout, stderr } = await run(["embed", fixture, input, "-q", "-o", output]);
      assert.equal(status, 1, output);
      assert.equal(stdout, "");
      assert.match(stderr, message);
      assert.equal(stderr.trim().split("\n").length, 1);
    }
    for (const name of ["x.npy", "x.jsonl"]) {
      const output = path.join(folder, name);
      const shell = `ulimit -f 64; exec "$0" "$@"`;
      const args = ["-c", shell, process.execPath, MAIN, "embed", fixture, input, "-q", "-o", output];
      const { status, stderr } = await processes.run("bash", args);
      assert.equal(status, 1, stderr);
      assert.match(stderr, new RegExp(`^error \\[EFBIG\\]: cannot write .*/${name}: EFBIG`));
    }
    assert.deepEqual(readdirSync(folder), ["input"]);
  },
);

test("a full standard output is an error with a code, for every command that prints", LINUX, async () => {
  const fixture = await model("bert_mean");
  for (const args of [
    ["models"],
    ["models", "--json"],
    ["embed", fixture, "package.json", "-q"],
    ["export", fixture],
  ]) {
    const command = [process.execPath, MAIN, ...args].map((argument) => `'${argument}'`).join(" ");
    const { status, stderr } = await processes.run("sh", ["-c", `${command} > /dev/full`], { cwd: ROOT });
    assert.equal(status, 1);
    const message = args.includes("--json") ? JSON.parse(stderr).error.message : stderr;
    assert.match(message, /cannot write to standard output: ENOSPC/);
  }
});
