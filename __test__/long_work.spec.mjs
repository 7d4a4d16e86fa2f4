/** Abort, progress, streams, the query cache, unloading and many concurrent callers, on every backend. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { appendFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import {
  api,
  assertClose,
  BACKENDS,
  changedModel,
  deepModel,
  embedderError,
  model,
  ROOT,
  withEmbedder,
} from "./support/models.mjs";

const { Embedder, EmbedderError } = api;
const texts = (count, name = "text") =>
  Array.from({ length: count }, (_, index) => `${name} ${index} ${"word ".repeat(index % 50)}`);

function isAbortError(reason) {
  return (error) => {
    assert.equal(error.name, "AbortError", String(error.stack));
    assert.equal(error.code, "ABORT_ERR");
    assert.ok(error instanceof EmbedderError);
    assert.equal(error.cause, reason);
    return true;
  };
}

for (const backend of BACKENDS) {
  const load = async (name, options, use) => withEmbedder(await model(name), { ...options, backend }, use);

  test(`${backend}: abort before the call, while it is queued and between batches`, () =>
    load("nomic_cls", {}, async (embedder) => {
      const reason = new Error("the user typed on");
      const before = AbortSignal.abort(reason);
      await assert.rejects(embedder.embed(["a"], { signal: before }), isAbortError(reason));
      await assert.rejects(embedder.embed([], { signal: before }), isAbortError(reason));

      const running = new AbortController();
      const queued = new AbortController();
      const progress = [];
      const call = embedder.embed(texts(4000, "running"), {
        signal: running.signal,
        onProgress: ({ done }) => {
          progress.push(done);
          running.abort(reason);
        },
      });
      const bystander = embedder.embed(texts(50, "bystander"));
      const waiting = embedder.embed(texts(4000, "queued"), { signal: queued.signal });
      queued.abort(reason);
      await assert.rejects(waiting, isAbortError(reason));
      await assert.rejects(call, isAbortError(reason));
      assert.equal(progress.length, 1);
      assert.ok(progress[0] < 4000);
      assert.equal((await bystander).length, 50);
      assert.equal((await embedder.embed(["after"])).length, 1);
      await sleep(120);
      assert.equal(progress.length, 1, "no report after the end");
      assert.equal((await embedder.info()).calls, 0);
    }));

  test(`${backend}: an abort after the end has no effect`, () =>
    load("bert_mean", {}, async (embedder) => {
      const controller = new AbortController();
      const [vector] = await embedder.embed(["text"], { signal: controller.signal });
      controller.abort();
      assert.deepEqual(await embedder.embed(["text"]), [vector]);
    }));

  test(`${backend}: progress grows and ends with all texts`, () =>
    load("nomic_cls", {}, async (embedder) => {
      const total = 3000;
      const reports = [];
      await embedder.embed([...texts(total - 100), ...texts(100)], { onProgress: (report) => reports.push(report) });
      assert.ok(reports.length > 1, `${reports.length} reports`);
      for (const [index, report] of reports.entries()) {
        assert.equal(report.total, total);
        const previous = reports[index - 1] ?? { done: 0, tokens: 0 };
        assert.ok(report.done >= previous.done && report.tokens >= previous.tokens);
      }
      const last = reports.at(-1);
      assert.equal(last.done, total);
      const { tokens, texts: computed } = await embedder.info();
      assert.equal(last.tokens, tokens);
      assert.equal(computed, total - 100);
    }));

  test(`${backend}: an error thrown by onProgress rejects the call, and the next one works`, () =>
    load("bert_mean", {}, async (embedder) => {
      const failure = new RangeError("mine");
      const failing = () => {
        throw failure;
      };
      await assert.rejects(embedder.embed(texts(3000), { onProgress: failing }), failure);
      await assert.rejects(embedder.embed(["one"], { onProgress: failing }), failure);
      assert.equal((await embedder.embed(["one"])).length, 1);
    }));

  test(`${backend}: a stream gives every text its vector`, () =>
    load("bert_mean", { maxTokens: 32 }, async (embedder) => {
      const all = texts(1500);
      let cut = new Set();
      const onTruncated = (indices) => {
        cut = new Set(indices);
      };
      const expected = await embedder.embed(all, { onTruncated });
      assert.ok(cut.size > 0 && cut.size < all.length);
      async function* asynchronously() {
        for (const text of all) {
          if (Math.random() < 0.01) await turn();
          yield text;
        }
      }
      for (const source of [all, new Set(all), asynchronously()]) {
        const seen = new Set();
        for await (const { index, vector, truncated } of embedder.stream(source)) {
          assert.ok(!seen.has(index));
          seen.add(index);
          assertClose(vector, expected[index], 1e-6, `text ${index}`);
          assert.equal(truncated, cut.has(index), `text ${index}`);
        }
        assert.equal(seen.size, all.length);
      }
      for await (const item of embedder.stream([])) assert.fail(String(item));
    }));

  test(`${backend}: a stream reads ahead only so far, and stops when the loop is left`, () =>
    load("bert_mean", {}, async (embedder) => {
      let read = 0;
      let returned = false;
      function* endless() {
        try {
          for (;;) yield `text ${read++}`;
        } finally {
          returned = true;
        }
      }
      let taken = 0;
      for await (const { index } of embedder.stream(endless())) {
        taken++;
        assert.ok(index < 1024);
        await sleep(100);
        assert.ok(read - taken <= 1024, `${read - taken} texts read ahead`);
        if (taken === 2) break;
      }
      assert.ok(returned);
      const atEnd = read;
      await sleep(20);
      assert.equal(read, atEnd);
    }));

  test(`${backend}: a stream yields vectors as soon as their batch is done`, async () =>
    // Deep enough that a batch takes longer than what JavaScript does with its vectors.
    withEmbedder(await deepModel({ layers: 30 }), { backend, threads: 2 }, async (embedder) => {
      const computed = async () => (await embedder.info()).batches;
      const before = await computed();
      let [count, last, longest] = [0, before, 0];
      for await (const _ of embedder.stream(texts(200))) {
        count++;
        const now = await computed();
        longest = Math.max(longest, now - last);
        last = now;
      }
      assert.equal(count, 200);
      const batches = last - before;
      // Usually one; what the machine is busy with beside this adds to it.
      assert.ok(batches > 20 && longest <= batches / 4, `${longest} of ${batches} batches without a vector`);
    }));

  test(`${backend}: a stream yields what it has while its source is slow`, () =>
    load("bert_mean", {}, async (embedder) => {
      let release = () => {};
      const gate = new Promise((resolve) => {
        release = resolve;
      });
      async function* slow() {
        yield "first";
        await gate;
        yield "second";
      }
      const stream = embedder.stream(slow(), { kind: "query" });
      assert.equal((await stream.next()).value.index, 0);
      release();
      assert.equal((await stream.next()).value.index, 1);
      assert.equal((await stream.next()).done, true);

      const stuck = embedder.stream(
        (async function* () {
          yield "first";
          await new Promise(() => {});
        })(),
      );
      for await (const _ of stuck) break;
    }));

  test(`${backend}: an error ends a stream`, () =>
    load("bert_mean", {}, async (embedder) => {
      const drain = async (source, options) => {
        let count = 0;
        for await (const _ of embedder.stream(source, options)) count++;
        return count;
      };
      await assert.rejects(drain(["a", 5]), embedderError("INVALID_ARGUMENT", "text 1", "5"));
      const failure = new Error("disk");
      async function* failing() {
        yield "a";
        throw failure;
      }
      await assert.rejects(drain(failing()), failure);
      const controller = new AbortController();
      async function* aborting() {
        yield "a";
        controller.abort("enough");
        await new Promise(() => {});
      }
      await assert.rejects(drain(aborting(), { signal: controller.signal }), isAbortError("enough"));
      await assert.rejects(drain(["a"], { signal: AbortSignal.abort("no") }), isAbortError("no"));
      for (const source of ["text", 5, null, undefined]) {
        assert.throws(() => embedder.stream(source), embedderError("INVALID_ARGUMENT", "iterable"));
      }
      assert.throws(() => embedder.stream([], { onProgress() {} }), embedderError("INVALID_ARGUMENT", "onProgress"));
      assert.equal(await drain(["a", "b"]), 2);
    }));

  test(`${backend}: closing ends a stream`, async () => {
    const embedder = await Embedder.load(await model("bert_mean"), { backend });
    const stream = embedder.stream(texts(3000));
    await stream.next();
    await embedder.close();
    await assert.rejects(async () => {
      for await (const _ of stream);
    }, embedderError("CLOSED"));
    assert.throws(() => embedder.stream([]), embedderError("CLOSED"));
  });

  test(`${backend}: repeated queries come from the cache, as copies`, () =>
    load("bert_mean", { queryCacheSize: 2, queryPrompt: "query: " }, async (embedder) => {
      const hits = async () => (await embedder.info()).queryCacheHits;
      const first = await embedder.embedQuery("a");
      const expected = first.slice();
      first.fill(0);
      const again = await embedder.embedQuery("a");
      assert.deepEqual(again, expected);
      again.fill(1);
      assert.deepEqual((await embedder.embed(["a"], { kind: "query" }))[0], expected);
      assert.equal(await hits(), 2);
      assert.notDeepEqual((await embedder.embed(["a"]))[0], expected, "a document is no query");
      assert.equal((await embedder.info()).texts, 2);
      const reports = [];
      for (const text of ["new", "new"])
        await embedder.embedQuery(text, { onProgress: (report) => reports.push(report) });
      assert.deepEqual(reports.at(-1), { done: 1, total: 1, tokens: reports[0].tokens });
      assert.ok(reports.length >= 2 && reports[0].tokens > 2, "the cache tells the same as the model");

      await embedder.embedQuery("a");
      await embedder.embedQuery("b");
      await embedder.embedQuery("a");
      await embedder.embedQuery("c");
      assert.equal(await hits(), 5);
      await embedder.embedQuery("b");
      assert.equal(await hits(), 5, "the one used longest ago was dropped");
    }));

  test(`${backend}: the query cache remembers truncation and can be turned off`, async () => {
    const long = "word ".repeat(100);
    await load("bert_mean", { maxTokens: 16 }, async (embedder) => {
      for (let run = 0; run < 2; run++) {
        let cut = 0;
        await embedder.embed([long], { kind: "query", onTruncated: ({ length }) => (cut = length) });
        assert.equal(cut, 1);
      }
      assert.equal(embedder.truncatedTexts, 2);
    });
    await load("bert_mean", { queryCacheSize: 0 }, async (embedder) => {
      await embedder.embedQuery("a");
      await embedder.embedQuery("a");
      const { queryCacheHits, texts: computed } = await embedder.info();
      assert.deepEqual([queryCacheHits, computed], [0, 2]);
    });
  });

  test(`${backend}: idle weights are unloaded and reloaded by the next call`, () =>
    load("bert_mean", { idleTimeoutMs: 30 }, async (embedder) => {
      const before = await embedder.embed(["a", "b"]);
      await sleep(300);
      const { fingerprint } = embedder;
      const [after, query] = await Promise.all([embedder.embed(["a", "b"]), embedder.embedQuery("c")]);
      assert.deepEqual(after, before);
      assert.equal(query.length, embedder.dimension);
      assert.equal(embedder.fingerprint, fingerprint);
      // Counted over all loads.
      assert.equal((await embedder.info()).texts, 5);
      const controller = new AbortController();
      await sleep(300);
      const aborted = embedder.embed(["d"], { signal: controller.signal });
      controller.abort();
      await assert.rejects(aborted, isAbortError(controller.signal.reason));
      assert.equal((await embedder.embed(["e"])).length, 1);
    }));

  test(`${backend}: a model that changed while it was unloaded is refused`, async () => {
    const folder = await changedModel("bert_mean", {});
    await withEmbedder(folder, { backend, idleTimeoutMs: 20, maxTokens: 64 }, async (embedder) => {
      await embedder.embed(["a"]);
      await sleep(300);
      appendFileSync(path.join(folder, "tokenizer.json"), "\n");
      await assert.rejects(embedder.embed(["b"]), embedderError("MODEL_INVALID", "has changed"));
    });
  });

  test(`${backend}: loading can be aborted`, async () => {
    const folder = await model("bert_mean");
    await assert.rejects(Embedder.load(folder, { backend, signal: AbortSignal.abort("no") }), isAbortError("no"));
    const controller = new AbortController();
    const loading = Embedder.load(folder, { backend, signal: controller.signal });
    controller.abort("changed my mind");
    await assert.rejects(loading, isAbortError("changed my mind"));
  });
}

test("options of long work are checked", async () => {
  const folder = await model("bert_mean");
  const refused = [
    [{ memoryBudget: 0 }, "memoryBudget"],
    [{ queryCacheSize: -1 }, "queryCacheSize"],
    [{ idleTimeoutMs: 0.5 }, "idleTimeoutMs"],
    [{ signal: {} }, "AbortSignal"],
  ];
  for (const [options, part] of refused) {
    await assert.rejects(Embedder.load(folder, options), embedderError("INVALID_ARGUMENT", part));
  }
  await withEmbedder(folder, { memoryBudget: 1 }, async (embedder) => {
    await assert.rejects(embedder.embed(["a"], { signal: 1 }), embedderError("INVALID_ARGUMENT", "AbortSignal"));
    await assert.rejects(embedder.embed(["a"], { onProgress: 1 }), embedderError("INVALID_ARGUMENT", "onProgress"));
    await embedder.embed(["a a", "b b", "c c"]);
    assert.equal((await embedder.info()).batches, 3, "a budget below any text still computes one at a time");
  });
});

/** In a worker: mixed calls on an embedder of its own, some aborted at random, some wrong; how each of them ended. */
async function storm({ api: file, random: randomModule, folder, backend, calls, seed }) {
  const { Embedder: WorkerEmbedder } = require(file);
  const { parentPort } = require("node:worker_threads");
  const { Random } = await import(randomModule);
  const generator = new Random(seed);
  const random = (limit) => generator.below(limit);
  const embedder = await WorkerEmbedder.load(folder, { backend, queryCacheSize: 8 });
  const pool = Array.from({ length: 30 }, (_, index) => `text ${index} ${"word ".repeat(index % 8)}`);
  const reference = await embedder.embed(pool);
  const ends = {};
  const count = (end) => {
    ends[end] = (ends[end] ?? 0) + 1;
  };
  const one = async () => {
    const chosen = Array.from({ length: random(6) }, () => random(pool.length));
    const list = chosen.map((index) => pool[index]);
    const kind = random(10);
    const controller = new AbortController();
    const expected = kind === 0 ? "INVALID_ARGUMENT" : undefined;
    if (kind === 0) list.push(random(2) ? null : 5);
    const call =
      kind === 1 ? embedder.embedQuery(pool[random(30)]) : embedder.embed(list, { signal: controller.signal });
    if (kind === 2) controller.abort();
    if (kind === 3) setImmediate(() => controller.abort());
    try {
      const vectors = await call;
      if (kind > 1) {
        const wrong = vectors.some((vector, row) =>
          vector.some((x, i) => Math.abs(x - reference[chosen[row]][i]) > 1e-5),
        );
        count(wrong || vectors.length !== chosen.length ? "wrong vectors" : "vectors");
      } else count(expected ? "accepted a wrong call" : "vectors");
    } catch (error) {
      count(
        error.code === expected || (error.code === "ABORT_ERR" && (kind === 2 || kind === 3)) ? "refused" : error.stack,
      );
    }
  };
  for (let done = 0; done < calls; done += 25) await Promise.all(Array.from({ length: 25 }, one));
  const { calls: pending } = await embedder.info();
  await embedder.close();
  parentPort.postMessage({ ends, pending });
}

test("10,000 mixed calls from 8 worker threads are each answered once and correctly", {
  timeout: 240_000,
}, async () => {
  const folder = await model("nomic_cls");
  const backends = BACKENDS.filter((backend) => backend !== "onnx-js");
  const workers = Array.from({ length: 8 }, (_, index) => {
    const input = {
      api: path.join(ROOT, "dist/embedder.js"),
      random: new URL("../scripts/random.mjs", import.meta.url),
      folder,
      backend: backends[index % backends.length],
      calls: 1250,
      seed: index + 1,
    };
    const code = `(${storm})(${JSON.stringify(input)})`;
    return new Worker(code, { eval: true });
  });
  const results = await Promise.all(
    workers.map(async (worker) => {
      // Both at once: the last message and the end may come in the same breath.
      const [[message]] = await Promise.all([once(worker, "message"), once(worker, "exit")]);
      return message;
    }),
  );
  let answered = 0;
  for (const { ends, pending } of results) {
    assert.deepEqual(Object.keys(ends).sort(), ["refused", "vectors"]);
    assert.equal(pending, 0);
    answered += ends.vectors + ends.refused;
  }
  assert.equal(answered, 10_000);
});
