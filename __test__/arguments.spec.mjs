/** Hostile and huge arguments: whatever a caller passes, errors have a code, and the event loop is not blocked. */

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { createRequire } from "node:module";
import { after, before, describe, test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { api, assertClose, BACKENDS, embedderError, model, ROOT, temporaryFolder } from "./support/models.mjs";
import { reportsOf } from "./support/processes.mjs";

const { Embedder, EmbedderError, pull, exportOnnx, init } = api;
const { inSlices, rowsInSlices } = createRequire(import.meta.url)("../dist/lib/slices.js");
const { MAX_TEXTS } = createRequire(import.meta.url)("../dist/lib/call_options.js");

const boom = () => {
  throw new Error("boom");
};
/** Throws at whatever is done to it. */
const trap = (target) => new Proxy(target, new Proxy({}, { get: () => boom }));
function revoked(target) {
  const { proxy, revoke } = Proxy.revocable(target, {});
  revoke();
  return proxy;
}
const throwing = (name) => Object.defineProperty({}, name, { get: boom, enumerable: true });

/** None of them is a list of texts. */
const TEXTS = {
  "a proxy that throws": trap([]),
  "a revoked proxy": revoked([]),
  "a proxy whose length throws": new Proxy(["a"], { get: (_, name) => (name === "length" ? boom() : "a") }),
  "a proxy of no length": new Proxy(["a"], { get: (_, name) => (name === "length" ? Number.NaN : "a") }),
  "a proxy of negative length": new Proxy(["a"], { get: (_, name) => (name === "length" ? -1 : "a") }),
  "a proxy whose length is an object": new Proxy(["a"], { get: (_, name) => (name === "length" ? {} : "a") }),
  "a proxy of endless texts": new Proxy(["a"], { get: (_, name) => (name === "length" ? 2 ** 53 - 1 : "a") }),
  "an array whose element throws": Object.defineProperty(["a"], 1, { get: boom, enumerable: true }),
  "an object with toString": [{ toString: () => "a" }],
  "an object whose toString throws": [{ toString: boom, [Symbol.toPrimitive]: boom }],
  "a String object": [new String("a")],
  "a proxy as text": [trap({})],
  "a revoked proxy as text": [revoked({})],
  "a typed array of another kind as text": [new Uint16Array(3)],
  "an array of numbers as text": [[1, 2]],
  "a proxy of token ids": [trap(new Uint32Array(3))],
  "the prototype of token ids": [Object.create(Uint32Array.prototype)],
  "a symbol": [Symbol("a")],
  "a number that is no text": [7n],
  "an object whose constructor throws": [throwing("constructor")],
  "an object whose constructor's name is a symbol": [{ constructor: { name: Symbol("a") } }],
  "an object of no prototype": [Object.create(null)],
  "holes alone": new Array(2 ** 32 - 1),
  "a set": new Set(["a"]),
  "a typed array": new Uint8Array(3),
};

/** None of them is a set of options, for any function. */
const OPTIONS = {
  "a proxy that throws": trap({}),
  "a revoked proxy": revoked({}),
  "a getter that throws": throwing("signal"),
  "an unknown getter that throws": throwing("nothing"),
  "a proxy whose value throws": new Proxy({ signal: 1 }, { get: boom }),
  "a function": () => {},
  "a symbol": Symbol("options"),
  "an array": [],
  "a signal's double": { signal: { aborted: false, addEventListener() {}, removeEventListener() {} } },
  "a signal's prototype": { signal: Object.create(AbortSignal.prototype) },
  "a revoked signal": { signal: revoked(new AbortController().signal) },
  "a signal as options": new AbortController().signal.constructor,
  "a symbol as value": { onProgress: Symbol("progress") },
};

/** None of them is a source of texts; those that throw themselves are below. */
const SOURCES = {
  "a proxy that throws": trap({}),
  "a revoked proxy": revoked([]),
  "a string": "texts",
  "an iterator method that is none": { [Symbol.iterator]: 7 },
  "an async iterator method that is none": { [Symbol.asyncIterator]: "next" },
  "an iterator that is none": { [Symbol.iterator]: () => 7 },
  "an iterator without next": { [Symbol.iterator]: () => ({}) },
  "next gives no object": { [Symbol.iterator]: () => ({ next: () => "a" }) },
  "next gives nothing": { [Symbol.asyncIterator]: () => ({ next: async () => undefined }) },
  "next gives a text that is none": { [Symbol.iterator]: () => ({ next: () => ({ value: trap({}) }) }) },
  "next gives a wrong text, and return throws": {
    [Symbol.iterator]: () => ({ next: () => ({ value: 7 }), return: boom }),
  },
};

/** They throw themselves: what they throw is what the caller gets. */
const THROWING_SOURCES = {
  "the method": (error) => ({ [Symbol.iterator]: () => fail(error) }),
  "a getter of the method": (error) => ({
    get [Symbol.asyncIterator]() {
      return fail(error);
    },
  }),
  next: (error) => ({ [Symbol.iterator]: () => ({ next: () => fail(error) }) }),
  "next, later": (error) => ({ [Symbol.asyncIterator]: () => ({ next: async () => fail(error) }) }),
  "a getter of the result": (error) => ({
    [Symbol.iterator]: () => ({
      next: () => ({
        get value() {
          return fail(error);
        },
      }),
    }),
  }),
  "a generator": (error) =>
    (function* () {
      yield "a";
      fail(error);
    })(),
};
function fail(error) {
  throw error;
}

/** Things that code may throw, an error of ours and things that throw again among them. */
const THROWN = [
  new Error("mine"),
  "a string",
  undefined,
  null,
  Object.assign(new Error("EACCES: mine"), { code: "EACCES", syscall: "open" }),
  new EmbedderError("CLOSED", "of another embedder"),
  trap({}),
  revoked({}),
];

/** What a call throws or rejects with. */
async function failureOf(call) {
  try {
    await call();
  } catch (error) {
    return { error };
  }
  return undefined;
}

async function assertRefused(what, call, code = "INVALID_ARGUMENT") {
  const failure = await failureOf(call);
  assert.ok(failure, `${what}: was taken`);
  const { error } = failure;
  assert.ok(error instanceof EmbedderError, `${what}: ${error}`);
  assert.equal(error.code, code, `${what}: ${error.message}`);
  assert.match(error.message, /./);
}

for (const backend of BACKENDS) {
  describe(`${backend}: hostile arguments`, () => {
    let embedder;
    before(async () => {
      embedder = await Embedder.load(await model("bert_mean"), { backend });
    });
    after(() => embedder.close());

    /** Takes a stream to its end. */
    async function drain(source, options) {
      for await (const _ of embedder.stream(source, options));
    }

    test("texts", async () => {
      for (const [what, texts] of Object.entries(TEXTS)) {
        await assertRefused(what, () => embedder.embed(texts));
        await assertRefused(what, () => embedder.embedQuery(texts));
      }
    });

    test("options", async () => {
      for (const [what, options] of Object.entries(OPTIONS)) {
        await assertRefused(`embed, ${what}`, () => embedder.embed(["a"], options));
        await assertRefused(`embedQuery, ${what}`, () => embedder.embedQuery("a", options));
        await assertRefused(`stream, ${what}`, () => drain(["a"], options));
      }
    });

    test("sources of a stream", async () => {
      for (const [what, source] of Object.entries(SOURCES)) await assertRefused(what, () => drain(source));
    });

    test("an error thrown by a source reaches the caller unchanged", async () => {
      for (const [what, source] of Object.entries(THROWING_SOURCES)) {
        for (const thrown of THROWN) {
          const failure = await failureOf(() => drain(source(thrown)));
          assert.ok(failure && Object.is(failure.error, thrown), what);
        }
      }
      const returning = (thrown) => ({
        [Symbol.iterator]: () => ({ next: () => ({ value: "a" }), return: () => fail(thrown) }),
      });
      for (const thrown of THROWN) {
        const failure = await failureOf(async () => {
          for await (const _ of embedder.stream(returning(thrown))) break;
        });
        // A source that is still to give its next text is not waited for.
        assert.ok(failure === undefined || Object.is(failure.error, thrown));
      }
    });

    test("an error thrown by a callback reaches the caller unchanged", async () => {
      for (const thrown of THROWN) {
        const callback = () => fail(thrown);
        const long = ["word ".repeat(1000)];
        for (const options of [{ onProgress: callback }, { onTruncated: callback }]) {
          for (const call of [
            () => embedder.embed(long, options),
            () => embedder.embedQuery(long[0], options),
            // From the cache, too.
            () => embedder.embedQuery(long[0], options),
          ]) {
            const failure = await failureOf(call);
            assert.ok(failure && Object.is(failure.error, thrown), Object.keys(options)[0]);
          }
        }
      }
    });

    test("a subclass of Array cannot decide what is read", async () => {
      class Odd extends Array {
        slice = boom;
        static get [Symbol.species]() {
          return boom;
        }
        [Symbol.iterator] = boom;
      }
      const odd = new Odd("a", "b");
      assert.deepEqual(await embedder.embed(odd), await embedder.embed(["a", "b"]));
    });

    test("changing the array after the call has no effect", async () => {
      const texts = Array.from({ length: 5000 }, (_, index) => `text ${index}`);
      const expected = await embedder.embed(["text 4999"]);
      const call = embedder.embed(texts);
      texts.fill("something else").length = 1;
      const vectors = await call;
      assert.equal(vectors.length, 5000);
      assertClose(vectors[4999], expected[0], 1e-5, "the last text");
    });

    test("a thousand calls on one signal: no warning, and no listener left", async () => {
      const warnings = [];
      const note = (warning) => warnings.push(warning.message);
      process.on("warning", note);
      const { signal } = new AbortController();
      const times = (call) => Array.from({ length: 1000 }, call);
      // More than the ten of which Node.js would warn.
      const some = (call) => Array.from({ length: 20 }, call);
      const folder = await model("bert_mean");
      await Promise.all([
        ...times(() => embedder.embed(["a", "b"], { signal })),
        ...times(() => embedder.embedQuery("a", { signal })),
        ...some(() => drain(["a", "b"], { signal })),
        ...some(() => failureOf(() => Embedder.load(`${folder}/nowhere`, { backend: "onnx", signal }))),
        ...some(() => failureOf(() => pull("org/model", { signal, offline: true, cacheFolder: temporaryFolder() }))),
      ]);
      // They are reported in a later turn.
      await turn();
      process.off("warning", note);
      assert.deepEqual(warnings, []);
      assert.deepEqual(getEventListeners(signal, "abort"), []);
    });

    test("a thousand calls on one signal are all aborted, those of other signals not", async () => {
      const controller = new AbortController();
      const { signal } = controller;
      const long = Array.from({ length: 300 }, (_, index) => `word ${index} `.repeat(20));
      const aborted = Array.from({ length: 1000 }, () => embedder.embed(long, { signal }));
      const other = embedder.embed(["a"], { signal: new AbortController().signal });
      controller.abort(new Error("enough"));
      for (const outcome of await Promise.allSettled(aborted)) {
        assert.equal(outcome.reason?.code, "ABORT_ERR");
        assert.equal(outcome.reason.cause.message, "enough");
      }
      assert.equal((await other).length, 1);
      assert.deepEqual(getEventListeners(signal, "abort"), []);
    });
  });
}

test("hostile arguments of load, pull, exportOnnx, init and the process-wide embed", async () => {
  const folder = await model("bert_mean");
  for (const [what, options] of Object.entries(OPTIONS)) {
    await assertRefused(`load, ${what}`, () => Embedder.load(folder, options));
    await assertRefused(`exportOnnx, ${what}`, () => exportOnnx(folder, options));
    await assertRefused(`init, ${what}`, () => init(folder, options));
    await assertRefused(`pull, ${what}`, () => pull("org/model", options));
  }
  for (const name of [
    7,
    {},
    trap({}),
    revoked({}),
    trap(() => {}),
    Symbol("model"),
    ["org/model"],
    new String(folder),
  ]) {
    for (const call of [Embedder.load, exportOnnx, init, pull]) await assertRefused(call.name, () => call(name));
  }
  for (const [what, texts] of Object.entries(TEXTS)) {
    await assertRefused(`the process-wide embed, ${what}`, () => api.embed(texts));
  }
  for (const isQuery of [null, 1, trap({}), "query"]) await assertRefused("isQuery", () => api.embed(["a"], isQuery));
  await assertRefused("a NUL in a cache folder", () => pull("org/model", { cacheFolder: "a\0b", offline: true }));
  await assertRefused("half a character in a revision", () =>
    pull("org/model", { revision: "a\ud800", offline: true }),
  );
});

test("methods called on an object that is not an embedder", async () => {
  for (const [method, argument] of [["embed", ["a"]], ["embedQuery", "a"], ["info"]]) {
    await assertRefused(method, () => Embedder.prototype[method].call({}, argument), "INFERENCE_FAILED");
  }
});

test("a sparse list is refused at once, however long", { timeout: 20_000 }, async () => {
  const embedder = await Embedder.load(await model("bert_mean"));
  await assert.rejects(embedder.embed(new Array(2 ** 32 - 1)), embedderError("INVALID_ARGUMENT", "stream"));
  await assert.rejects(embedder.embed(new Array(MAX_TEXTS)), embedderError("INVALID_ARGUMENT", "texts[0]"));
  const sparse = [];
  sparse[MAX_TEXTS - 1] = "a";
  await assert.rejects(embedder.embed(sparse), embedderError("INVALID_ARGUMENT", "texts[0]"));
  await embedder.close();
});

describe("the event loop is not blocked", () => {
  test("while texts are handed to the addon, however short", async () => {
    const sizes = [];
    await inSlices(new Array(100_000).fill(""), (slice) => sizes.push(slice.length));
    assert.equal(
      sizes.reduce((sum, size) => sum + size),
      100_000,
    );
    assert.ok(Math.max(...sizes) <= 2048, `${Math.max(...sizes)} texts in one turn`);
  });

  test("while rows are made", async () => {
    const matrix = new Float32Array(50_000 * 3).map((_, index) => index);
    let turns = 0;
    let isDone = false;
    const counting = (async () => {
      for (; !isDone; turns++) await turn();
    })();
    const rows = await rowsInSlices(matrix, 50_000);
    isDone = true;
    await counting;
    assert.ok(turns >= 40, `${turns} turns`);
    assert.equal(rows.length, 50_000);
    for (const index of [0, 1, 1023, 1024, 49_999]) {
      assert.deepEqual([...rows[index]], [3 * index, 3 * index + 1, 3 * index + 2]);
      assert.equal(rows[index].buffer, matrix.buffer);
    }
  });

  test("while rows are made, which an abort ends", async () => {
    const controller = new AbortController();
    const call = rowsInSlices(new Float32Array(50_000), 50_000, controller.signal);
    controller.abort();
    await assert.rejects(call, { code: "ABORT_ERR" });
  });
});

test("without a home folder, the error says which variable to set", {
  skip: process.platform === "win32",
}, async () => {
  const body = `
    require("node:os").homedir = () => { throw new Error("ENOENT: no such file or directory, uv_os_homedir"); };
    require("./dist/embedder.js").pull("org/model", { offline: true })
      .catch(({ name, code, message }) => console.log(JSON.stringify({ name, code, message })));`;
  const { HF_HOME: _, HF_HUB_CACHE: __, XDG_CACHE_HOME: ___, ...env } = process.env;
  const [{ name, code, message }] = await reportsOf(["-e", body], { cwd: ROOT, env });
  assert.deepEqual([name, code], ["EmbedderError", "INVALID_ARGUMENT"]);
  assert.match(message, /HF_HOME/);
});
