/**
 * A worker thread: makes the table of a static model from a transformer's vectors of all tokens. Its rows are centred, along
 * the principal components, each of which has variance 1, and weighted by how rare the token is.
 *
 * `workerData`: `vectors` [tokens, width], `width`, `dimension`. Its message: the table [tokens, dimension].
 */

import { parentPort, workerData } from "node:worker_threads";
import { EigenvalueDecomposition, Matrix } from "ml-matrix";

/** Smooth inverse frequency (Arora, Liang and Ma, 2017): tokens that are more frequent than this count less. */
const SIF = 1e-5;
/** The covariance of so many tokens is that of all of them. */
const SAMPLE = 4000;

/**
 * @param {Float32Array[]} rows
 * @param {number} dimension
 */
function tokenTable(rows, dimension) {
  const width = rows[0].length;
  const mean = new Float64Array(width);
  for (const row of rows) for (let index = 0; index < width; index++) mean[index] += row[index] / rows.length;
  const components = principalComponents(rows, mean, dimension);
  // Vocabularies are in order of frequency, and frequency goes by rank (Zipf's law).
  const harmonic = rows.reduce((sum, _, rank) => sum + 1 / (rank + 1), 0);
  const table = new Float32Array(rows.length * dimension);
  for (const [rank, row] of rows.entries()) {
    const weight = SIF / (SIF + 1 / (rank + 1) / harmonic);
    const projected = table.subarray(rank * dimension, (rank + 1) * dimension);
    for (const [index, component] of components.entries()) {
      const value = weight * (row[index] - mean[index]);
      for (let column = 0; column < dimension; column++) projected[column] += value * component[column];
    }
  }
  return table;
}

/**
 * The first principal components, divided by the standard deviation along them.
 *
 * @param {Float32Array[]} rows
 * @param {Float64Array} mean
 * @param {number} dimension
 * @returns {Float32Array[]} [width of a row, dimension]
 */
function principalComponents(rows, mean, dimension) {
  const step = Math.ceil(rows.length / SAMPLE);
  const sample = rows.filter((_, index) => index % step === 0);
  const centred = new Matrix(sample.map((row) => Array.from(row, (value, index) => value - mean[index])));
  const covariance = centred.transpose().mmul(centred).div(sample.length);
  const { realEigenvalues, eigenvectorMatrix } = new EigenvalueDecomposition(covariance, { assumeSymmetric: true });
  const order = realEigenvalues
    .map((variance, index) => ({ variance, index }))
    .sort((a, b) => b.variance - a.variance)
    .slice(0, dimension);
  return Array.from(mean, (_, row) =>
    Float32Array.from(order, ({ variance, index }) => eigenvectorMatrix.get(row, index) / Math.sqrt(variance)),
  );
}

const { vectors, width, dimension } = workerData;
const tokens = vectors.length / width;
const rows = Array.from({ length: tokens }, (_, token) => vectors.subarray(token * width, (token + 1) * width));
const table = tokenTable(rows, dimension);
parentPort?.postMessage(table, [table.buffer]);
