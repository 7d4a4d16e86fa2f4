/** kill -9 at moments that nobody chose: nothing is lost, nothing is doubled. */

import assert from "node:assert/strict";
import { cpSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { assertClose, contentsOf, countsOf, folderWith, indexed, REPOSITORY, run, TINY_MODEL } from "./folders.mjs";

const KILLS = 6;

/** Kills an indexer once it has written some files and vectors more than there were, and then a little later. */
async function indexAndKill(dir, { files, exact }, delayMs) {
  let child;
  const ended = run(["index", dir, `--model=${TINY_MODEL}`], { started: (started) => (child = started) });
  let isEnded = false;
  ended.finally(() => (isEnded = true));
  while (!isEnded && (countsOf(dir).files < files || countsOf(dir).exact < exact)) await sleep(2);
  await sleep(delayMs);
  child.kill("SIGKILL");
  return (await ended).signal === "SIGKILL";
}

test("an index that was killed again and again is the index made in one go", async (context) => {
  const dir = folderWith();
  for (const folder of ["src", "lib", "cli", "__test__", "tests", "scripts", "packages/code-search/lib", "xtask/src"]) {
    const filter = (file) => !/\.(safetensors|node)$|node_modules|\/golden/.test(file);
    cpSync(path.join(REPOSITORY, folder), path.join(dir, folder), { recursive: true, filter });
  }
  let kept = countsOf(dir);
  let kills = 0;
  for (let round = 0; round < KILLS; round++) {
    const goal = { files: kept.files + 1, exact: round === 0 ? 0 : kept.exact + 50 };
    if (round > 0) goal.files = kept.files;
    if (await indexAndKill(dir, goal, Math.random() * 15)) kills++;
    const now = countsOf(dir);
    assert.ok(
      now.files >= kept.files && now.exact >= kept.exact,
      `${JSON.stringify(kept)}, now ${JSON.stringify(now)}`,
    );
    kept = now;
    const { counts } = contentsOf(dir);
    assert.equal(counts.chunks, counts.words);
    assert.equal(counts.exact, kept.exact);
  }
  context.diagnostic(`${kills} kills; ${kept.exact} of ${kept.chunks} chunks were exact after the last`);
  assert.ok(kills >= 2, `only ${kills} of ${KILLS} came in time`);

  const before = countsOf(dir);
  const { files, changed } = await indexed(dir);
  assert.equal(changed, files - before.files, "what survived is not read again");
  const fresh = folderWith();
  cpSync(dir, fresh, { recursive: true, filter: (file) => !file.includes(".code-search") });
  await indexed(fresh);
  const survivor = contentsOf(dir);
  const expected = contentsOf(fresh);
  assert.deepEqual(survivor.chunks, expected.chunks);
  assert.deepEqual(survivor.counts, expected.counts);
  assertClose(survivor.vectors, expected.vectors);
});
