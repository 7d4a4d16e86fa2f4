/** Checks that all compute the same vectors, before anything is timed. */

import { cosine } from "../report/statistics.mjs";

/**
 * The least cosine of each contestant's vectors to the reference's: of texts within the token limit, and of longer ones,
 * where peers differ in how they truncate.
 *
 * @param {string[]} names the contestants
 * @param {string} reference one of them
 * @param {(name: string, request: object) => Promise<number[][] | undefined>} ask `undefined` from one that failed
 * @returns {Promise<{ [name: string]: { fitting: number, cut: number } }>} without those that give no vectors
 */
export async function compareVectors(names, reference, ask) {
  const cosines = {};
  for (const texts of ["fitting", "cut"]) {
    const expected = await ask(reference, { want: "vectors", texts });
    for (const name of names) {
      const vectors = name === reference ? expected : await ask(name, { want: "vectors", texts });
      if (!vectors || !expected || vectors.length === 0) continue;
      cosines[name] ??= {};
      cosines[name][texts] = Math.min(...vectors.map((vector, i) => cosine(vector, expected[i])));
    }
  }
  return cosines;
}
