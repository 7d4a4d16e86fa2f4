/** Where `embed` writes vectors, one after the other. */

import type { EncodedVector, Encoding } from "../lib/engine.js";
import type { Origin } from "./input.js";
import { print } from "./terminal.js";
import { WholeFile } from "./whole_file.js";

/** Tells which text a vector belongs to. */
export interface VectorRecord extends Origin {
  /** Index of the vector, from 0; the row of a `.npy` file. */
  index: number;
  /** Set if the text was truncated to the token limit. */
  truncated?: true;
}

export interface VectorOutput {
  write(record: VectorRecord, vector: EncodedVector[Encoding]): Promise<void>;
  /** Called after the last vector. */
  complete(): Promise<void>;
  /** Called instead of `complete`: leaves nothing behind. */
  discard(): Promise<void>;
}

/** @param file `undefined` for standard output */
export async function vectorOutput(
  file: string | undefined,
  encoding: Encoding,
  dimension: number,
): Promise<VectorOutput> {
  if (file === undefined) return standardOutput;
  const whole = await WholeFile.create(file);
  return /\.npy$/i.test(file) ? npyOutput(whole, encoding, dimension) : jsonLinesOutput(whole);
}

function jsonLine(record: VectorRecord, vector: EncodedVector[Encoding]): string {
  return `${JSON.stringify({ ...record, vector: Array.from(vector) })}\n`;
}

const standardOutput: VectorOutput = {
  write: (record, vector) => print(jsonLine(record, vector)),
  complete: async () => {},
  discard: async () => {},
};

function jsonLinesOutput(file: WholeFile): VectorOutput {
  return {
    write: (record, vector) => file.append(Buffer.from(jsonLine(record, vector))),
    complete: () => file.complete(),
    discard: () => file.discard(),
  };
}

/** A NumPy array with one row per vector. Their number is known only at the end, when the header is rewritten. */
async function npyOutput(file: WholeFile, encoding: Encoding, dimension: number): Promise<VectorOutput> {
  const columns = encoding === "binary" ? Math.ceil(dimension / 8) : dimension;
  let rows = 0;
  await file.append(npyHeader(encoding, rows, columns));
  return {
    write: (_, vector) => {
      rows++;
      return file.append(new Uint8Array(vector.buffer, vector.byteOffset, vector.byteLength));
    },
    complete: async () => {
      await file.patchStart(npyHeader(encoding, rows, columns));
      await file.complete();
    },
    discard: () => file.discard(),
  };
}

/** Every supported platform is little-endian. */
const NPY_TYPES: Record<Encoding, string> = { float32: "<f4", int8: "|i1", binary: "|u1" };
/** A multiple of 64, as the format requires, with space for any number of rows. */
const NPY_HEADER_BYTES = 128;

/** Version 1.0 of NumPy's format: magic, version, length of the rest, a Python literal padded with spaces to a line. */
export function npyHeader(encoding: Encoding, rows: number, columns: number): Buffer {
  const header = Buffer.alloc(NPY_HEADER_BYTES, " ");
  header.write("\x93NUMPY\x01\x00", "latin1");
  header.writeUInt16LE(NPY_HEADER_BYTES - 10, 8);
  header.write(`{'descr': '${NPY_TYPES[encoding]}', 'fortran_order': False, 'shape': (${rows}, ${columns}), }`, 10);
  header.write("\n", NPY_HEADER_BYTES - 1);
  return header;
}
