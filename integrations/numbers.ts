/** Vectors as the arrays of numbers that other libraries take. */
export function asNumbers(vectors: readonly ArrayLike<number>[]): number[][] {
  return vectors.map((vector) => Array.from(vector));
}
