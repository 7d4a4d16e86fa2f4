/** Token ids in place of texts, on every backend. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { before, test } from "node:test";
import { api, assertClose, BACKENDS, changedModel, embedderError, model, withEmbedder } from "./support/models.mjs";

const require = createRequire(import.meta.url);
const { inSlices } = require("../dist/lib/slices.js");
const { addonOptions, loadAddon } = require("../dist/lib/native.js");

const TEXTS = [
  "def parse(value): return int(value)",
  "",
  "The search finds every file that was changed after the war.",
  "日本語 🚀 Ångström",
];
/** A fixture with prompts. */
const NAME = "nomic_mean_dynamic";
/** Of `TEXTS`, behind the model's prompts. */
const ids = { document: [], query: [] };

before(async () => {
  const tokenizer = await loadAddon().Model.load(await model(NAME), addonOptions({}));
  for (const text of TEXTS) {
    ids.document.push(tokenizer.tokenize(text, false));
    ids.query.push(tokenizer.tokenize(text, true));
  }
  await tokenizer.close();
});

async function failureOf(call) {
  return call.then(
    () => assert.fail("was taken"),
    (error) => error,
  );
}

for (const backend of BACKENDS) {
  const load = async (options, use) => withEmbedder(await model(NAME), { ...options, backend }, use);

  test(`${backend}: the ids of a text give its vector, whatever the kind, also mixed with texts`, () =>
    load({}, async (embedder) => {
      for (const kind of ["document", "query"]) {
        const expected = await embedder.embed(TEXTS, { kind });
        for (const as of ["document", "query"]) {
          assert.deepEqual(await embedder.embed(ids[kind], { kind: as }), expected, `${kind} as ${as}`);
        }
        for (const [index, tokens] of ids[kind].entries()) {
          assertClose(await embedder.embedQuery(tokens), expected[index], 1e-6, `embedQuery ${index}`);
        }
        const mixed = [ids[kind][2], TEXTS[0], ids[kind][0], ids[kind][2], TEXTS[0], TEXTS[3]];
        let tokens = 0;
        const { texts } = await embedder.info();
        const onProgress = (progress) => {
          tokens = progress.tokens;
        };
        const vectors = await embedder.embed(mixed, { kind, onProgress });
        for (const [place, index] of [2, 0, 0, 2, 0, 3].entries()) {
          assertClose(vectors[place], expected[index], 1e-6, `${kind} ${place}`);
        }
        const [a, , c, d] = ids[kind].map(({ length }) => length);
        assert.equal(tokens, c + 2 * a + d);
        assert.equal((await embedder.info()).texts - texts, 4);
      }
    }));

  test(`${backend}: stream takes ids, even from a source that reuses their memory`, () =>
    load({}, async (embedder) => {
      const expected = await embedder.embed(TEXTS);
      const order = Array.from({ length: 1500 }, (_, index) => index % TEXTS.length);
      const memory = new Uint32Array(1000);
      const source = function* () {
        for (const [place, index] of order.entries()) {
          memory.set(ids.document[index]);
          yield place % 5 === 0 ? TEXTS[index] : memory.subarray(0, ids.document[index].length);
        }
      };
      let count = 0;
      for await (const { index, vector } of embedder.stream(source())) {
        assertClose(vector, expected[order[index]], 1e-6, index);
        count++;
      }
      assert.equal(count, order.length);
    }));

  test(`${backend}: ids beyond the limit are truncated on the model's side, and reported`, async () => {
    const tokens = Uint32Array.from({ length: 12 }, (_, index) => 100 + index);
    const left = await changedModel("bert_mean", {
      "tokenizer_config.json": (config) => ({ ...config, truncation_side: "left" }),
    });
    for (const [folder, kept] of [
      [await model("bert_mean"), tokens.slice(0, 8)],
      [left, tokens.slice(-8)],
    ]) {
      await withEmbedder(folder, { backend, maxTokens: 8 }, async (embedder) => {
        const reports = [];
        const onTruncated = (indices) => reports.push(...indices);
        const [whole, cut] = await embedder.embed([kept, tokens], { onTruncated });
        assertClose(cut, whole, 1e-6, folder);
        assert.deepEqual(reports, [1]);
        assert.equal(embedder.truncatedTexts, 1);
        for await (const { index, vector, truncated } of embedder.stream([kept, tokens])) {
          assertClose(vector, whole, 1e-6, folder);
          assert.equal(truncated, index === 1);
        }
      });
    }
  });

  test(`${backend}: ids outside the vocabulary are refused, and the next call works`, () =>
    load({}, async (embedder) => {
      const { vocabularySize } = embedder;
      assert.ok(vocabularySize > Math.max(...ids.document.flatMap((tokens) => [...tokens])));
      const largest = Uint32Array.of(0, vocabularySize - 1);
      const [vector] = await embedder.embed([largest]);
      const limit = `from 0 to ${vocabularySize - 1}`;
      for (const [wrong, ...named] of [
        [Uint32Array.of(5, vocabularySize), `found ${vocabularySize} at texts[2][1]`, limit],
        [Uint32Array.of(-1), "found 4294967295 at texts[2][0]", limit],
        [new Uint32Array(), "at least one token id", "texts[2]"],
      ]) {
        await assert.rejects(embedder.embed(["a", largest, wrong]), embedderError("INVALID_ARGUMENT", ...named));
        await assert.rejects(embedder.embedQuery(wrong), embedderError("INVALID_ARGUMENT"));
        const drain = async () => {
          for await (const _ of embedder.stream(["a", largest, ...Array(1000).fill("b"), wrong]));
        };
        await assert.rejects(drain(), embedderError("INVALID_ARGUMENT", "text 1002: expected"));
      }
      for (const wrong of [[1, 2], [new Uint16Array(2)], [new Int32Array(2)], [[1, 2]], [new Float32Array(2)]]) {
        const refused = embedderError("INVALID_ARGUMENT", "texts[0]", "a string or a Uint32Array of token ids");
        await assert.rejects(embedder.embed(wrong), refused);
      }
      assert.deepEqual(await embedder.embed([largest]), [vector]);
    }));

  test(`${backend}: ids are read from any Uint32Array, whatever its methods and its memory`, () =>
    load({}, async (embedder) => {
      const [tokens] = ids.document;
      const [expected] = await embedder.embed([tokens]);
      const boom = () => assert.fail("a method was called");
      class Odd extends Uint32Array {
        slice = boom;
        subarray = boom;
        join = boom;
        [Symbol.iterator] = boom;
        get length() {
          return boom();
        }
      }
      const shared = new Uint32Array(new SharedArrayBuffer(4 * tokens.length));
      shared.set(tokens);
      const part = new Uint32Array(tokens.length + 7);
      part.set(tokens, 3);
      const odd = new Odd(tokens.length);
      for (const [index, id] of tokens.entries()) odd[index] = id;
      for (const form of [shared, odd, part.subarray(3, -4)]) {
        assert.deepEqual(await embedder.embed([form]), [expected]);
        for await (const { vector } of embedder.stream([form])) assert.deepEqual(vector, expected);
      }
      const transferred = Uint32Array.from(tokens);
      structuredClone(transferred.buffer, { transfer: [transferred.buffer] });
      await assert.rejects(embedder.embed([transferred]), embedderError("INVALID_ARGUMENT", "cannot be read"));
      for (const double of [new Proxy(tokens, {}), Object.create(Uint32Array.prototype)]) {
        await assert.rejects(embedder.embed([double]), embedderError("INVALID_ARGUMENT", "texts[0]"));
        await assert.rejects(embedder.embedQuery(double), embedderError("INVALID_ARGUMENT", "text"));
      }
    }));

  test(`${backend}: ids are never confused with texts, and the query cache keeps only texts`, () =>
    load({}, async (embedder) => {
      const [tokens] = ids.query;
      const expected = await embedder.embedQuery(TEXTS[0]);
      for (let run = 0; run < 2; run++) {
        assertClose(await embedder.embedQuery(tokens), expected, 1e-6, "ids");
        // What a list of ids may be taken for.
        for (const text of [tokens.join(), [...tokens].join(" ")]) {
          assert.notDeepEqual(await embedder.embedQuery(text), expected);
          const [ofText, ofIds] = await embedder.embed([text, tokens]);
          assert.notDeepEqual(ofText, expected);
          assertClose(ofIds, expected, 1e-6, "ids beside a text of the same digits");
        }
      }
      assert.equal((await embedder.info()).queryCacheHits, 2);
    }));

  test(`${backend}: many lists of ids cross in slices and keep their order`, () =>
    load({ maxTokens: 4 }, async (embedder) => {
      const list = Array.from({ length: 12 }, (_, index) => new Uint32Array(300_000).fill(index + 5));
      const vectors = await embedder.embed(list);
      for (const index of [0, 5, 11]) {
        const [alone] = await embedder.embed([list[index].slice(0, 4)]);
        assertClose(vectors[index], alone, 1e-6, index);
      }
    }));

  test(`${backend}: an embedder that unloads its weights takes ids`, () =>
    load({ idleTimeoutMs: 1 }, async (embedder) => {
      const [first] = await embedder.embed([TEXTS[0]]);
      await new Promise((resolve) => setTimeout(resolve, 30));
      assertClose((await embedder.embed([ids.document[0]]))[0], first, 1e-6, "reloaded");
      assert.ok(embedder.vocabularySize > 0);
    }));
}

test("ids are handed to the addon in slices, however short or long the lists are", async () => {
  for (const [count, length, most] of [
    [100_000, 1, 2048],
    [20, 300_000, 4],
  ]) {
    const sizes = [];
    const list = Array.from({ length: count }, () => new Uint32Array(length));
    await inSlices(list, (slice) => sizes.push(slice.length));
    assert.equal(
      sizes.reduce((sum, size) => sum + size),
      count,
    );
    assert.ok(Math.max(...sizes) <= most, `${Math.max(...sizes)} lists of ${length} in one turn`);
  }
});

test("all backends report invalid ids and the vocabulary alike", async () => {
  const said = [];
  for (const backend of BACKENDS) {
    await withEmbedder(await model(NAME), { backend }, async (embedder) => {
      const wrong = [Uint32Array.of(1, 1 << 30), new Uint32Array()];
      const errors = [];
      for (const tokens of wrong) errors.push((await failureOf(embedder.embed(["a", tokens]))).message);
      said.push([embedder.vocabularySize, ...errors]);
    });
  }
  for (const other of said) assert.deepEqual(other, said[0]);
});

test("the process-wide embed takes ids", async () => {
  api.init(await model(NAME));
  assert.deepEqual(api.embed(ids.document), api.embed(TEXTS));
  assert.throws(() => api.embed([Uint32Array.of(1 << 30)]), embedderError("INVALID_ARGUMENT", "texts[0][0]"));
});
