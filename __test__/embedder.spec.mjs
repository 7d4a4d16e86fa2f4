/** What `Embedder` promises, on every backend. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { test } from "node:test";
import {
  api,
  assertClose,
  assertNothingFailed,
  BACKENDS,
  changedModel,
  embedderError,
  model,
  ROOT,
  STARTER_MODEL,
  withEmbedder,
} from "./support/models.mjs";
import { reportsOf } from "./support/processes.mjs";

const TEXTS = [
  "def parse(value): return int(value)",
  "",
  "The search finds every file that was changed after the war.",
  "日本語 🚀 Ångström ΟΔΟΣ",
  "a b c d e f g h i j k l m n o p q r s t u v w x y z ".repeat(40),
];

for (const backend of BACKENDS) {
  const load = async (name, options, use) => withEmbedder(await model(name), { ...options, backend }, use);

  test(`${backend}: a text's vector does not depend on order, on neighbours or on repetition`, () =>
    load("nomic_cls", {}, async (embedder) => {
      const together = await embedder.embed(TEXTS);
      const reversed = (await embedder.embed(TEXTS.toReversed())).reverse();
      const repeated = await embedder.embed([...TEXTS, ...TEXTS]);
      for (const [index, text] of TEXTS.entries()) {
        const [alone] = await embedder.embed([text]);
        assertClose(together[index], alone, 1e-6, "alone");
        assertClose(together[index], reversed[index], 1e-6, "reversed");
        assert.deepEqual(repeated[index], repeated[index + TEXTS.length]);
      }
    }));

  test(`${backend}: vectors have length 1 unless normalize is off`, async () => {
    const length = (vector) => Math.hypot(...vector);
    await load("bert_mean", {}, async (embedder) => {
      for (const vector of await embedder.embed(TEXTS)) assert.ok(Math.abs(length(vector) - 1) < 1e-6);
    });
    await load("bert_mean", { normalize: false }, async (embedder) => {
      const lengths = (await embedder.embed(TEXTS)).map(length);
      assert.ok(lengths.some((value) => Math.abs(value - 1) > 0.01));
    });
  });

  test(`${backend}: the result is one row per text over one buffer`, () =>
    load("bert_mean", {}, async (embedder) => {
      const vectors = await embedder.embed(TEXTS);
      assert.equal(vectors.length, TEXTS.length);
      for (const vector of vectors) {
        assert.ok(vector instanceof Float32Array);
        assert.equal(vector.length, embedder.dimension);
        assert.equal(vector.buffer, vectors[0].buffer);
      }
      assert.deepEqual(await embedder.embed([]), []);
    }));

  test(`${backend}: kind chooses the prompt`, () =>
    load("nomic_mean_dynamic", {}, async (embedder) => {
      const [text] = TEXTS;
      const [document] = await embedder.embed([text]);
      const [query] = await embedder.embed([text], { kind: "query" });
      assert.notDeepEqual(document, query);
      assert.deepEqual((await embedder.embed([text], true))[0], query);
      assert.deepEqual((await embedder.embed([text], false))[0], document);
      assert.deepEqual(await embedder.embedQuery(text), query);
      await load("nomic_mean_dynamic", { queryPrompt: "", documentPrompt: "search_query: " }, async (bare) => {
        assert.deepEqual((await bare.embed([text]))[0], query);
        assertClose(await bare.embedQuery(`search_document: ${text}`), document, 1e-6, "prompt written out");
      });
    }));

  test(`${backend}: truncation is reported and counted, repetitions included`, () =>
    load("bert_mean", { maxTokens: 16 }, async (embedder) => {
      assert.equal(embedder.maxTokens, 16);
      const long = TEXTS.at(-1);
      const reports = [];
      await embedder.embed(["short", long, "short", long], { onTruncated: (indices) => reports.push([...indices]) });
      assert.deepEqual(reports, [[1, 3]]);
      assert.equal(embedder.truncatedTexts, 2);
      await embedder.embed(["short"], { onTruncated: () => assert.fail("nothing was cut") });
      assert.equal(embedder.truncatedTexts, 2);
    }));

  test(`${backend}: maxTokens is clipped to the model's own limit`, async () => {
    await load("bert_mean", { maxTokens: 100_000 }, async (embedder) => assert.equal(embedder.maxTokens, 64));
    await load("nomic_cls", {}, async (embedder) => assert.equal(embedder.maxTokens, 512));
  });

  test(`${backend}: the array is read before the call returns`, () =>
    load("bert_mean", {}, async (embedder) => {
      const [expected] = await embedder.embed(["first"]);
      const texts = ["first"];
      const running = embedder.embed(texts);
      texts[0] = 42;
      texts.push(null);
      assert.deepEqual(await running, [expected]);
    }));

  test(`${backend}: lone surrogates become U+FFFD`, () =>
    load("bert_mean", {}, async (embedder) => {
      const [lone, replaced] = await embedder.embed(["a \ud800 b \udc00", "a \ufffd b \ufffd"]);
      assertClose(lone, replaced, 0, "lone surrogate");
    }));

  test(`${backend}: many texts cross in slices and keep their order`, () =>
    load("bert_mean", { maxTokens: 4 }, async (embedder) => {
      const padding = " ".repeat(300_000);
      const texts = Array.from({ length: 12 }, (_, index) => `${"abcdefghijkl"[index]}${padding}`);
      const vectors = await embedder.embed(texts);
      for (const index of [0, 5, 11]) {
        assertClose(vectors[index], (await embedder.embed([texts[index].trim()]))[0], 1e-6, texts[index].trim());
      }
    }));

  test(`${backend}: the fingerprint changes with what decides the vectors, and with nothing else`, async () => {
    const fingerprint = (options) => load("bert_mean", options, async (embedder) => embedder.fingerprint);
    const plain = await fingerprint({});
    assert.match(plain, /^[0-9a-f]{64}$/);
    assert.equal(await fingerprint({ threads: 1, maxTokens: 64, dtype: "f32" }), plain);
    const others = [
      { maxTokens: 20 },
      { normalize: false },
      { pooling: "cls" },
      { queryPrompt: "q: " },
      { documentPrompt: "d" },
    ];
    const all = await Promise.all(others.map(fingerprint));
    assert.equal(new Set([plain, ...all]).size, others.length + 1);
  });

  test(`${backend}: several models work side by side, and calls may overlap`, () =>
    load("bert_mean", {}, (one) =>
      load("nomic_cls", {}, async (other) => {
        const calls = Array.from({ length: 8 }, (_, index) => [one, other][index % 2].embed(TEXTS));
        const results = await Promise.all(calls);
        assert.deepEqual(results[0], results[2]);
        assert.deepEqual(results[1], results[3]);
        assert.equal(results[0][0].length, one.dimension);
      }),
    ));

  test(`${backend}: close rejects calls in flight and later ones, and may be repeated`, async () => {
    const embedder = await api.Embedder.load(await model("nomic_cls"), { backend });
    const texts = Array.from({ length: 500 }, (_, index) => `${index} ${TEXTS.at(-1)}`);
    const running = embedder.embed(texts);
    const refused = assert.rejects(running, embedderError("CLOSED"));
    await Promise.all([embedder.close(), embedder.close()]);
    await refused;
    await assert.rejects(embedder.embed(["x"]), embedderError("CLOSED"));
    await assert.rejects(embedder.embedQuery("x"), embedderError("CLOSED"));
    await embedder[Symbol.asyncDispose]();
    assert.equal(embedder.dimension > 0, true, "what the model was is still known");
  });
}

test("backend and isGpu say what is used", async () => {
  await withEmbedder(await model("bert_cls_f16"), {}, (embedder) => {
    assertNothingFailed(embedder);
    assert.equal(embedder.isGpu, embedder.backend === "mlx");
    assert.deepEqual(embedder.pooling, ["cls"]);
  });
  await withEmbedder(await model("bert_cls_f16"), { backend: "onnx-js" }, (embedder) => {
    assert.equal(embedder.backend, "onnx-js");
    assert.equal(embedder.isGpu, false);
    assert.equal(embedder.fallbackReason, null);
  });
});

test("a model_type that stands for the same architecture as another gives the same vectors", async () => {
  for (const [name, type] of [
    ["roberta", "camembert"],
    ["xlm_roberta", "camembert"],
    ["gte_new", "gte"],
  ]) {
    const renamed = await changedModel(name, { "config.json": (config) => ({ ...config, model_type: type }) });
    const embed = (folder) => withEmbedder(folder, { backend: "onnx" }, (embedder) => embedder.embed(TEXTS));
    assert.deepEqual(await embed(renamed), await embed(await model(name)), `${name} as ${type}`);
  }
});

const NOT_LINUX = process.platform !== "linux" && "this is promised for Linux";

test("loading takes at most twice the size of the weights, and later a loaded model takes it once", {
  skip: NOT_LINUX,
}, async () => {
  const weights = statSync(path.join(STARTER_MODEL, "model.safetensors")).size;
  // The small model is there to load the libraries.
  const script = `
    const { Embedder } = require(${JSON.stringify(path.join(ROOT, "dist/embedder.js"))});
    const options = { backend: "onnx", dtype: "f32", threads: 2 };
    (async () => {
      await (await Embedder.load(${JSON.stringify(await model("bert_mean"))}, options)).close();
      const before = process.memoryUsage.rss();
      const embedder = await Embedder.load(${JSON.stringify(STARTER_MODEL)}, options);
      await embedder.embedQuery("the time");
      await new Promise((resolve) => setTimeout(resolve, 2000));
      const kept = process.memoryUsage.rss() - before;
      console.log(JSON.stringify({ most: process.resourceUsage().maxRSS * 1024 - before, kept }));
      await embedder.close();
    })();`;
  const [{ most, kept }] = await reportsOf(["-e", script]);
  assert.ok(most > weights && most <= 2 * weights, `${most} bytes while loading ${weights}`);
  assert.ok(kept <= 1.5 * weights, `${kept} bytes afterwards`);
});

test("threads for bulk work have a lower priority", { skip: NOT_LINUX }, async () => {
  await withEmbedder(await model("nomic_cls"), { backend: "onnx", threads: 2 }, async (embedder) => {
    await embedder.embed(TEXTS);
    const niceness = (thread) => {
      const [state] = readFileSync(`/proc/self/task/${thread}/stat`, "utf8").split(") ").slice(-1);
      return Number(state.split(" ")[16]);
    };
    const lower = Math.min(os.getPriority() + 10, 19);
    assert.ok(readdirSync("/proc/self/task").map(niceness).includes(lower), `a thread with nice ${lower}`);
  });
});

test("SEMANTIC_SEARCH_MODEL and SEMANTIC_SEARCH_BACKEND replace only the defaults", async (t) => {
  process.env.SEMANTIC_SEARCH_MODEL = await model("bert_mean");
  process.env.SEMANTIC_SEARCH_BACKEND = "onnx-js";
  t.after(() => {
    delete process.env.SEMANTIC_SEARCH_MODEL;
    delete process.env.SEMANTIC_SEARCH_BACKEND;
  });
  await withEmbedder(undefined, undefined, (embedder) => assert.equal(embedder.backend, "onnx-js"));
  await withEmbedder(undefined, { backend: "auto" }, (embedder) => assert.equal(embedder.backend, "onnx-js"));
  await withEmbedder(undefined, { backend: "onnx" }, (embedder) => assert.equal(embedder.backend, "onnx"));
  process.env.SEMANTIC_SEARCH_BACKEND = "cuda";
  await assert.rejects(
    api.Embedder.load(),
    embedderError("INVALID_ARGUMENT", "SEMANTIC_SEARCH_BACKEND", '"onnx-js"', '"cuda"'),
  );
});
