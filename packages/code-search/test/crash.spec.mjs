/** kill -9 at moments that nobody chose: nothing is lost, nothing is doubled. */

import assert from "node:assert/strict";
import { cpSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { assertClose, contentsOf, filesIn, folderWith, indexed, REPOSITORY, run, TINY_MODEL } from "./folders.mjs";

const KILLS = 6;

/** Kills an indexer once it has written some files more than there were, and then a little later. */
async function indexAndKill(dir, files, delayMs) {
  let child;
  const ended = run(["index", dir, `--model=${TINY_MODEL}`], { started: (started) => (child = started) });
  let isEnded = false;
  ended.finally(() => (isEnded = true));
  while (!isEnded && filesIn(dir) < files) await sleep(2);
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
  let kept = 0;
  let kills = 0;
  for (let round = 0; round < KILLS; round++) {
    if (await indexAndKill(dir, kept + 3, Math.random() * 15)) kills++;
    const files = filesIn(dir);
    assert.ok(files >= kept, `${kept} files were in the index, now ${files}`);
    kept = files;
    const { counts } = contentsOf(dir);
    assert.ok(new Set(counts).size === 1, `chunks, vectors, words: ${counts}`);
  }
  context.diagnostic(`${kills} kills; ${kept} files were in the index after the last`);
  assert.ok(kills >= 2, `only ${kills} of ${KILLS} came in time`);

  const { files, changed } = await indexed(dir);
  assert.equal(changed, files - kept, "what survived is not embedded again");
  const fresh = folderWith();
  cpSync(dir, fresh, { recursive: true, filter: (file) => !file.includes(".code-search") });
  await indexed(fresh);
  const survivor = contentsOf(dir);
  const expected = contentsOf(fresh);
  assert.deepEqual(survivor.chunks, expected.chunks);
  assert.deepEqual(survivor.counts, expected.counts);
  assertClose(survivor.vectors, expected.vectors);
});
