/** Every backend against vectors of sentence-transformers (see tests/fixtures/README.md). */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  assertClose,
  BACKENDS,
  changedModel,
  FIXTURES,
  golden,
  model,
  STARTER_MODEL,
  withEmbedder,
} from "./support/models.mjs";

for (const backend of BACKENDS) {
  for (const name of FIXTURES) {
    test(`${name} gives its golden vectors on ${backend}`, async () => {
      for (const { options, folder, cases } of await groups(name)) {
        await withEmbedder(folder, { ...options, backend }, async (embedder) => {
          for (const { name: caseName, text, kind, truncated, vector } of cases) {
            let wasTruncated = false;
            const onTruncated = () => {
              wasTruncated = true;
            };
            const [actual] = await embedder.embed([text], { kind, onTruncated });
            assertClose(actual, vector, 1e-5, `${name}, ${caseName}`);
            assert.equal(wasTruncated, truncated, caseName);
          }
        });
      }
    });
  }

  test(`all-MiniLM-L6-v2 gives its golden vectors on ${backend}`, async () => {
    const { texts: all, truncated, vectors } = golden("all-MiniLM-L6-v2");
    const bytes = Buffer.from(vectors, "base64");
    const expected = new Float32Array(new Uint8Array(bytes).buffer);
    await withEmbedder(STARTER_MODEL, { backend }, async (embedder) => {
      // On a CPU, MLX takes a second or more for each long text: two of them are enough.
      const isSlow = backend === "mlx" && !embedder.isGpu;
      const long = [...all.keys()].filter((index) => all[index].length > 500);
      const chosen = [...all.keys()].filter((index) => !isSlow || !long.slice(2).includes(index));
      const cut = new Set();
      const actual = await embedder.embed(
        chosen.map((index) => all[index]),
        { onTruncated: (rows) => rows.forEach((row) => void cut.add(chosen[row])) },
      );
      for (const [row, vector] of actual.entries()) {
        const index = chosen[row];
        assertClose(vector, expected.subarray(index * 384, (index + 1) * 384), 1e-5, all[index]);
      }
      assert.deepEqual(
        chosen.map((index) => cut.has(index)),
        chosen.map((index) => truncated[index]),
      );
    });
  });
}

/** Cases by what has to be loaded for them: limit and pooling. */
async function groups(name) {
  const { maxTokens: usual, cases } = golden(name);
  const found = new Map();
  for (const entry of cases) {
    const { maxTokens = usual, pooling } = entry;
    const key = JSON.stringify([maxTokens, pooling]);
    if (!found.has(key)) {
      const isList = Array.isArray(pooling);
      found.set(key, {
        // Several modes can be said by the model folder only.
        folder: isList
          ? await changedModel(name, { "1_Pooling/config.json": () => ({ pooling_mode: pooling }) })
          : await model(name),
        options: { maxTokens, ...(pooling && !isList && { pooling }) },
        cases: [],
      });
    }
    found.get(key).cases.push(entry);
  }
  return found.values();
}
