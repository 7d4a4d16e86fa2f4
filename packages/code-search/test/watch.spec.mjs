/** An index that follows its folder while another process searches it, or changes it. */

import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { CodeSearch } from "../index.mjs";
import { contentsOf, folderWith, OTHER_TINY_MODEL, run, TINY_MODEL, write } from "./folders.mjs";

const DEADLINE_MS = 30_000;

test("a file that is changed, made or removed is in the index soon after", {
  skip: process.platform === "win32" && "signals end a process there",
}, async (context) => {
  const dir = folderWith({ "a.js": "function first() {}\n" });
  const names = () => contentsOf(dir).chunks.map(({ name }) => name);
  let child;
  const ended = run(["watch", dir, `--model=${TINY_MODEL}`], { started: (started) => (child = started) });
  context.after(() => child.kill("SIGKILL"));
  let output = "";
  child.stdout.on("data", (text) => (output += text));
  const holds = async (expected) => {
    for (const end = Date.now() + DEADLINE_MS; ; await sleep(50)) {
      const found = output === "" ? [] : names().sort();
      if (found.join() === expected.join()) return;
      assert.ok(Date.now() < end, `${found} instead of ${expected}`);
    }
  };
  await holds(["first"]);
  write(dir, "a.js", "function changed() {}\n");
  await holds(["changed"]);
  write(dir, "below/b.js", "function made() {}\n");
  await holds(["changed", "made"]);
  const { stdout } = await run(["search", "made", dir, "--limit=1", `--model=${TINY_MODEL}`]);
  assert.ok(stdout.startsWith(path.join(dir, "below/b.js")), stdout);
  rmSync(path.join(dir, "a.js"));
  await holds(["made"]);
  child.kill("SIGINT");
  const { status, stderr } = await ended;
  assert.deepEqual([status, stderr], [0, `watching ${dir} until Ctrl-C\n`]);
  assert.match(output, /^\d\d:\d\d:\d\d 1 files, \d of 1 chunks exact\n/);
});

test("an index that another process has made anew with another model is not searched", async () => {
  const dir = folderWith({ "a.js": "function first() {}\n" });
  const [one, other] = await Promise.all(
    [TINY_MODEL, OTHER_TINY_MODEL].map((model) => CodeSearch.open(dir, { model, backend: "onnx" })),
  );
  try {
    await one.update();
    await one.refine();
    assert.equal((await one.search("first")).hits.length, 1);
    await other.update();
    await other.refine();
    for (const ask of [one.search("first"), one.similar({ path: "a.js", line: 1 })]) {
      await assert.rejects(ask, { code: "INDEX_CHANGED", message: /made anew with another model/ });
    }
    await one.update();
    await one.refine();
    assert.equal((await one.search("first")).hits[0]?.name, "first");
  } finally {
    await one.close();
    await other.close();
  }
});
