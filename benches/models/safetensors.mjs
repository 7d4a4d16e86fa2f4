/** Safetensors files; only float32 tensors are seen. */

import { closeSync, openSync, readFileSync, readSync, renameSync, writeSync } from "node:fs";
import { bytesOf } from "./onnx_graph.mjs";

/**
 * The float32 tensors of a file; their values are read when asked for.
 *
 * @returns {Map<string, { shape: number[], offset: number, length: number, values(): Float32Array }>} `offset` counts from
 * the beginning of the file
 */
export function readSafetensors(file) {
  const handle = openSync(file, "r");
  const size = Buffer.alloc(8);
  readSync(handle, size, 0, 8, 0);
  const json = Buffer.alloc(Number(size.readBigUInt64LE()));
  readSync(handle, json, 0, json.length, 8);
  closeSync(handle);
  let content;
  const tensors = Object.entries(JSON.parse(json.toString()))
    // Some checkpoints carry position ids, which nobody reads.
    .filter(([, { dtype }]) => dtype === "F32")
    .map(
      ([
        name,
        {
          shape,
          data_offsets: [start, end],
        },
      ]) => {
        const offset = 8 + json.length + start;
        const values = () => {
          content ??= readFileSync(file);
          // A copy: a view would have to begin at a multiple of four bytes.
          const from = content.byteOffset + offset;
          return new Float32Array(content.buffer.slice(from, from + end - start));
        };
        return [name, { shape, offset, length: end - start, values }];
      },
    );
  return new Map(tensors);
}

/**
 * Writes tensors, each made when its turn comes, so that only one is in memory.
 *
 * @param {{ name: string, shape: number[], make: () => Float32Array }[]} tensors
 */
export function writeSafetensors(file, tensors) {
  const header = {};
  let end = 0;
  for (const { name, shape } of tensors) {
    const start = end;
    end += 4 * shape.reduce((product, size) => product * size, 1);
    header[name] = { dtype: "F32", shape, data_offsets: [start, end] };
  }
  const json = Buffer.from(JSON.stringify(header));
  // The values begin at a multiple of eight bytes.
  const padded = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, " ")]);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(padded.length));
  const partial = `${file}.part`;
  const handle = openSync(partial, "w");
  const write = (bytes) => {
    for (let at = 0; at < bytes.length; ) at += writeSync(handle, bytes, at);
  };
  write(size);
  write(padded);
  for (const { make } of tensors) write(bytesOf(make()));
  closeSync(handle);
  renameSync(partial, file);
}
