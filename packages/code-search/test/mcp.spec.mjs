/** The server of the Model Context Protocol, driven by the protocol's own client. */

import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { lockIndex } from "../lib/index_folder.mjs";
import { countsOf, environment, folderWith, PROGRAM, run, TINY_MODEL, write } from "./folders.mjs";

const FILES = {
  "src/dates.js": "/** Parses a date. */\nexport function parseDate(text) {\n  return new Date(text);\n}\n",
  "src/money.py": "def format_money(amount):\n    return f'{amount:.2f}'\n",
};
const CLIENT = { name: "test", version: "1.0.0" };
const DEADLINE_MS = 30_000;

/** A client of a new server, both closed at the end of the test. */
async function connected(context, args, env) {
  const strings = Object.entries(environment(env)).filter(([, value]) => value !== undefined);
  const transport = new StdioClientTransport({
    command: process.execPath,
    args: [PROGRAM, "mcp", ...args],
    env: Object.fromEntries(strings),
    stderr: "pipe",
  });
  let stderr = "";
  transport.stderr.on("data", (text) => (stderr += text));
  const client = new Client(CLIENT);
  // What is no message on standard output comes here.
  const errors = [];
  client.onerror = (error) => errors.push(error);
  await client.connect(transport);
  // From now on the client checks results by the schemas of the tools.
  await client.listTools();
  context.after(async () => {
    await client.close();
    assert.deepEqual(errors, [], stderr);
  });
  const call = (name, args) => client.callTool({ name, arguments: args });
  return { client, call, transport, said: () => stderr };
}

/** Asks again and again until the answer is as expected. */
async function until(ask, isExpected) {
  for (const end = Date.now() + DEADLINE_MS; ; await sleep(50)) {
    const answer = await ask();
    if (isExpected(answer)) return answer;
    assert.ok(Date.now() < end, JSON.stringify(answer));
  }
}

test("tools say what they are for, and what they take and give", async (context) => {
  const { client } = await connected(context, [folderWith(FILES), `--model=${TINY_MODEL}`]);
  assert.equal(client.getServerVersion().name, "code-search");
  assert.match(client.getInstructions(), /by meaning and by words/);
  const { tools } = await client.listTools();
  assert.deepEqual(
    tools.map(({ name, inputSchema }) => [name, Object.keys(inputSchema.properties), inputSchema.required]),
    [
      ["search", ["question", "limit"], ["question"]],
      ["similar", ["path", "line", "limit"], ["path", "line"]],
    ],
  );
  for (const { description, outputSchema, annotations } of tools) {
    assert.match(description, /Use it/);
    assert.deepEqual(Object.keys(outputSchema.properties), ["hits", "exact"]);
    assert.equal(annotations.readOnlyHint, true);
  }
});

test("search and similar answer at once, with text and with structure", async (context) => {
  const dir = folderWith(FILES);
  const { call } = await connected(context, [dir, `--model=${TINY_MODEL}`]);
  const found = await call("search", { question: "parse a date", limit: 1 });
  assert.ok(!found.isError, JSON.stringify(found));
  const [hit, ...others] = found.structuredContent.hits;
  assert.deepEqual([hit.path, hit.line, hit.name, others.length], ["src/dates.js", 2, "parseDate", 0]);
  assert.ok(found.structuredContent.exact.of === 2);
  assert.match(found.content[0].text, /^src\/dates\.js:2 {2}parseDate\n {5}1 {2}\/\*\* Parses a date/);

  for (const file of ["src/money.py", path.join(dir, "src/money.py")]) {
    const { structuredContent } = await call("similar", { path: file, line: 2 });
    assert.ok(structuredContent.hits.length > 0);
    assert.ok(structuredContent.hits.every(({ path }) => path in FILES));
  }
});

test("what is wrong is an error of the tool, and the server goes on", async (context) => {
  const { call } = await connected(context, [folderWith(FILES), `--model=${TINY_MODEL}`]);
  for (const [name, args, message] of [
    ["search", { question: " " }, /question/],
    ["search", { question: "x", limit: 0 }, /limit/],
    ["search", {}, /question/],
    ["similar", { path: "../secret.js", line: 1 }, /OUTSIDE.*\.\.\/secret\.js is not in the folder/],
    ["similar", { path: "/etc/passwd", line: 1 }, /OUTSIDE.*\/etc\/passwd is not in the folder/],
    ["similar", { path: "src/absent.js", line: 1 }, /src\/absent\.js/],
    ["similar", { path: "src/dates.js", line: 900 }, /src\/dates\.js:900/],
    ["find", {}, /find/],
  ]) {
    const { isError, content } = await call(name, args);
    assert.ok(isError, name);
    assert.match(content[0].text, message);
  }
  assert.equal((await call("search", { question: "parse a date" })).isError, undefined);
});

test("a model that is not there is an error of the tool", async (context) => {
  const { call, said } = await connected(context, [folderWith(FILES), "--model=./no-such-model"]);
  const { isError, content } = await call("search", { question: "x" });
  assert.ok(isError);
  assert.match(content[0].text, /MODEL_NOT_FOUND.*no-such-model/);
  assert.match(said(), /no-such-model/);
});

test("files that are changed, made and removed while it runs are found as they are", async (context) => {
  const dir = folderWith(FILES);
  const { call } = await connected(context, [dir, `--model=${TINY_MODEL}`]);
  const names = async (question) => {
    const { structuredContent } = await call("search", { question });
    return structuredContent.hits.map(({ name }) => name);
  };
  assert.ok(!(await names("zebraCrossing")).includes("zebraCrossing"));
  write(dir, "src/new.js", "function zebraCrossing() {\n  return 1;\n}\n");
  await until(
    () => names("zebraCrossing"),
    ([first]) => first === "zebraCrossing",
  );
  write(dir, "src/dates.js", "function quokkaHabitat() {\n  return 2;\n}\n");
  await until(
    () => names("quokkaHabitat"),
    (found) => found[0] === "quokkaHabitat" && !found.includes("parseDate"),
  );
  rmSync(path.join(dir, "src/new.js"));
  await until(
    () => names("zebraCrossing"),
    (found) => !found.includes("zebraCrossing"),
  );
});

test("an index that another process is at work on is searched as it is", async (context) => {
  const dir = folderWith(FILES);
  await run(["index", dir, `--model=${TINY_MODEL}`]);
  const lock = await lockIndex(dir);
  try {
    const { call } = await connected(context, [dir, `--model=${TINY_MODEL}`]);
    const { structuredContent, content } = await call("search", { question: "parse a date" });
    assert.equal(structuredContent.hits[0].name, "parseDate");
    assert.match(content[0].text, /\n\n\(another process is bringing the index up to date\)$/);
  } finally {
    lock.release();
  }
});

test("it ends when its input does, and writes nothing but the protocol", async () => {
  const dir = folderWith(FILES);
  const send = (child) => {
    const messages = [
      { id: 1, method: "initialize", params: { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: CLIENT } },
      { method: "notifications/initialized" },
      { id: 2, method: "tools/call", params: { name: "search", arguments: { question: "x" } } },
    ];
    for (const message of messages) child.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`);
    let stdout = "";
    child.stdout.on("data", (text) => {
      stdout += text;
      if (stdout.includes('"id":2')) child.stdin.end();
    });
  };
  const { status, stdout, stderr } = await run(["mcp", dir, `--model=${TINY_MODEL}`], { started: send });
  assert.deepEqual([status, stderr], [0, ""]);
  const answers = stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  assert.deepEqual(
    answers.map(({ id }) => id),
    [1, 2],
  );
  assert.equal(countsOf(dir).files, 2);
});
