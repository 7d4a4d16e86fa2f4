/** Questions about this repository that a real model must answer. */

import assert from "node:assert/strict";
import { cpSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { folderWith, REPOSITORY, run, STARTER_MODEL, WITHOUT_STARTER_MODEL } from "./folders.mjs";

const QUESTIONS = {
  "Where is a text that is too long cut to the token limit?": "tokenizer.rs",
  "How are texts of similar length put into one batch?": "batch.rs",
  "scale a vector to length one": "vector.rs",
  "rotary position embedding with dynamic scaling": "graph/layers.rs",
  "How do queries overtake bulk work?": "engine/queue.rs",
  "read the pooling mode from the model folder": "model_dir.rs",
  "read the header of a safetensors file": "checkpoint.rs",
};

test("questions find their file in a folder that was never indexed", { skip: WITHOUT_STARTER_MODEL }, async () => {
  const dir = folderWith();
  cpSync(path.join(REPOSITORY, "src"), dir, { recursive: true });
  const model = `--model=${STARTER_MODEL}`;
  const missed = [];
  for (const [question, file] of Object.entries(QUESTIONS)) {
    const { status, stdout, stderr } = await run(["search", question, dir, "--json", "--limit=5", model]);
    assert.equal(status, 0, stderr);
    const { hits, exact } = JSON.parse(stdout);
    assert.equal(hits.length, 5);
    assert.ok(exact.chunks > 0 && exact.chunks < exact.of / 2, "what is likely is computed, and no more");
    if (!hits.some((hit) => hit.path === file)) missed.push(`${question}: ${hits.map((hit) => hit.path)}`);
  }
  assert.deepEqual(missed, []);

  const { stdout } = await run(["search", "embed_query", dir, "--limit=3", model]);
  assert.match(stdout, /^\S+\.rs:\d+ {2}.*\n +\d+ {2}/);
});
