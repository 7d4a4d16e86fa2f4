/** Whether everybody computes the same, before anything is timed. */

import { cosine } from "../statistics.mjs";

/**
 * The least cosine of each contestant's vectors to the reference's: of texts within the token limit, and of longer ones,
 * where peers differ in how they cut.
 *
 * @param {{ [name: string]: import("../contestant.mjs").Contestant }} contestants
 * @param {string} reference name of one of them
 * @returns {Promise<{ [name: string]: { fitting: number, cut: number } }>} without those that give no vectors
 */
export async function compareVectors(contestants, reference) {
  const cosines = {};
  for (const texts of ["fitting", "cut"]) {
    const expected = await contestants[reference].ask({ want: "vectors", texts });
    for (const [name, contestant] of Object.entries(contestants)) {
      const vectors = name === reference ? expected : await contestant.ask({ want: "vectors", texts });
      if (vectors.length === 0) continue;
      cosines[name] ??= {};
      cosines[name][texts] = Math.min(...vectors.map((vector, i) => cosine(vector, expected[i])));
    }
  }
  return cosines;
}
