/** Several processes that download the same model. No test reaches the real Hub. */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, renameSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { assertComplete, hubWith, ID, parts, pulling, repository, WEIGHTS } from "./support/hub.mjs";
import { sendUntil, sha256, stallAfter } from "./support/hub_server.mjs";
import { api } from "./support/models.mjs";
import { until } from "./support/processes.mjs";

const { pull } = api;

test("of several processes one downloads, and the others wait for it", async () => {
  const { hub, options } = await hubWith();
  let release;
  const released = new Promise((resolve) => {
    release = resolve;
  });
  hub.fault(
    "cdn",
    /safetensors/,
    sendUntil(100_000, (response, file) => released.then(() => response.end(file.subarray(100_000)))),
  );
  const children = [1, 2, 3].map(() => pulling(options));
  await until(() => parts(options).length > 0, "the first bytes");
  await until(() => hub.requests.filter(({ path: asked }) => asked.includes("/api/")).length === 3, "all processes");
  // The others are at the weights, too, by now, or will find them.
  await delay(500);
  release();
  for (const { folder } of await Promise.all(children.map(({ result }) => result))) assertComplete(folder);
  assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 1, "one download of the weights");
  assert.deepEqual(parts(options), []);
});

test("of several calls in one process one downloads", async () => {
  const { hub, options } = await hubWith();
  const folders = await Promise.all([1, 2, 3, 4].map(() => pull(ID, options)));
  assert.equal(new Set(folders).size, 1);
  assertComplete(folders[0]);
  assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 1);
});

test("after a process was killed in the middle, the next one resumes its download", async () => {
  const { hub, options } = await hubWith();
  hub.fault("cdn", /safetensors/, stallAfter(150_000));
  const { child, result } = pulling(options);
  const part = () => parts(options).map((name) => path.join(repository(options), "blobs", name))[0];
  await until(() => part() && statSync(part()).size === 150_000, "the bytes");
  child.kill("SIGKILL");
  assert.deepEqual(await result, { signal: "SIGKILL" });
  assert.ok(!existsSync(path.join(repository(options), "refs/main")), "nothing says that the model is there");
  hub.requests.length = 0;
  assertComplete(await pull(ID, options));
  assert.deepEqual(
    hub.requests.filter(({ host }) => host === "cdn").map(({ range }) => range),
    ["bytes=150000-"],
  );
  assert.deepEqual(parts(options), []);
});

test("when a downloading process is killed, a waiting one takes over", async () => {
  const { hub, options } = await hubWith();
  hub.fault("cdn", /safetensors/, stallAfter(150_000));
  const { child } = pulling(options);
  await until(
    () =>
      existsSync(path.join(repository(options), "blobs")) &&
      parts(options).some((name) => name.startsWith(sha256(WEIGHTS))),
    "the bytes",
  );
  const waiting = pull(ID, options);
  await delay(1500);
  assert.equal(hub.requests.filter(({ host }) => host === "cdn").length, 1, "it waits");
  child.kill("SIGKILL");
  assertComplete(await waiting);
  assert.equal(hub.requests.at(-1).range, "bytes=150000-");
});

test("a partial file that another process took over is left to it", async () => {
  const { hub, options } = await hubWith();
  let release;
  const released = new Promise((resolve) => {
    release = resolve;
  });
  const rest = (response, file) => released.then(() => response.end(file.subarray(100_000)));
  hub.fault("cdn", /safetensors/, sendUntil(100_000, rest));
  const pulled = pull(ID, options);
  const part = () => parts(options).find((name) => name.startsWith(sha256(WEIGHTS)));
  await until(part, "the first bytes");
  // As a process of another machine does that took this one for dead.
  const folder = path.join(repository(options), "blobs");
  const theirs = path.join(folder, `${sha256(WEIGHTS)}.semantic-search.00000000-1-0000.incomplete`);
  renameSync(path.join(folder, part()), theirs);
  release();
  await delay(700);
  writeFileSync(path.join(folder, sha256(WEIGHTS)), WEIGHTS);
  rmSync(theirs);
  assertComplete(await pulled);
  assert.deepEqual(parts(options), []);
});

test("a partial file left by another machine is taken over after a while", async () => {
  const { hub, options } = await hubWith();
  const folder = path.join(repository(options), "blobs");
  mkdirSync(folder, { recursive: true });
  const theirs = path.join(folder, `${sha256(WEIGHTS)}.semantic-search.00000000-1-0000.incomplete`);
  writeFileSync(theirs, WEIGHTS.subarray(0, 70_000));
  await assert.rejects(pull(ID, { ...options, signal: AbortSignal.timeout(700) }), { code: "ABORT_ERR" });
  const longAgo = Date.now() / 1000 - 60;
  utimesSync(theirs, longAgo, longAgo);
  assertComplete(await pull(ID, options));
  assert.equal(hub.requests.at(-1).range, "bytes=70000-");
});
