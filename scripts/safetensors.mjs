/** Reads and writes safetensors files: for the benchmark's models, and for tests that damage files on purpose. */

import { closeSync, openSync, readFileSync, readSync, renameSync, writeSync } from "node:fs";
import { bytesOf } from "./onnx-graph.mjs";

/** @typedef {{ [tensor: string]: { dtype: string, shape: number[], data_offsets: [number, number] } }} Header */

/** The length in front of the header and the header itself, padded with spaces to `length` bytes. */
function encodeHeader(header, length) {
  const json = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([json, Buffer.alloc(Math.max(0, length(json.length) - json.length), " ")]);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(padded.length));
  return Buffer.concat([size, padded]);
}

/**
 * @param {Buffer} file its content
 * @returns {{ header: Header, headerLength: number, data: Buffer }}
 */
export function decodeSafetensors(file) {
  const headerLength = Number(file.readBigUInt64LE(0));
  const end = 8 + headerLength;
  return { header: JSON.parse(file.toString("utf8", 8, end)), headerLength, data: file.subarray(end) };
}

/**
 * The opposite of `decodeSafetensors`. A header that got shorter is padded to `headerLength`: an exported ONNX graph points
 * behind it by offset.
 */
export function encodeSafetensors({ header, headerLength, data }) {
  return Buffer.concat([encodeHeader(header, () => headerLength), data]);
}

/**
 * The float32 tensors of a file; their values are read when asked for.
 *
 * @param {string} file its path
 * @returns {Map<string, { shape: number[], offset: number, length: number, values(): Float32Array }>} `offset` counts from
 * the beginning of the file
 */
export function float32Tensors(file) {
  const handle = openSync(file, "r");
  const size = Buffer.alloc(8);
  readSync(handle, size, 0, 8, 0);
  const json = Buffer.alloc(Number(size.readBigUInt64LE()));
  readSync(handle, json, 0, json.length, 8);
  closeSync(handle);
  let content;
  // Some checkpoints carry position ids, which nobody reads.
  const floats = Object.entries(JSON.parse(json.toString())).filter(([, { dtype }]) => dtype === "F32");
  const tensors = floats.map(([name, { shape, data_offsets }]) => {
    const [start, end] = data_offsets;
    const offset = 8 + json.length + start;
    const values = () => {
      content ??= readFileSync(file);
      // A copy: a view would have to begin at a multiple of four bytes.
      const from = content.byteOffset + offset;
      return new Float32Array(content.buffer.slice(from, from + end - start));
    };
    return [name, { shape, offset, length: end - start, values }];
  });
  return new Map(tensors);
}

/**
 * Writes float32 tensors. Each is made when its turn comes, so that only one is in memory.
 *
 * @param {string} file its path
 * @param {{ name: string, shape: number[], make: () => Float32Array }[]} tensors
 */
export function writeFloat32Tensors(file, tensors) {
  const header = {};
  let end = 0;
  for (const { name, shape } of tensors) {
    const start = end;
    end += 4 * shape.reduce((product, size) => product * size, 1);
    header[name] = { dtype: "F32", shape, data_offsets: [start, end] };
  }
  const partial = `${file}.part`;
  const handle = openSync(partial, "w");
  const write = (bytes) => {
    for (let at = 0; at < bytes.length; ) at += writeSync(handle, bytes, at);
  };
  // The values begin at a multiple of eight bytes.
  write(encodeHeader(header, (length) => 8 * Math.ceil(length / 8)));
  for (const { make } of tensors) write(bytesOf(make()));
  closeSync(handle);
  renameSync(partial, file);
}
