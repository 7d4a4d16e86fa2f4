import { closeSync, fstatSync, readSync } from "node:fs";
import { EmbedderError } from "./errors.js";
import { isObject, type JsonObject, parseJsonObject } from "./json_file.js";
import { openRegularFile } from "./regular_file.js";

/** Most bytes of a safetensors file that is read whole. */
export const MOST_SAFETENSORS = 2 ** 31 - 1;
/** Most bytes of a header, as in `src/checkpoint.rs`: a limit of the format. */
const MOST_HEADER = 1e8;

/** How the numbers of each format are read; `size` in bytes. */
const FORMATS: { [dtype: string]: { size: number; read: (bytes: Buffer, offset: number) => number } } = {
  F32: { size: 4, read: (bytes, offset) => bytes.readFloatLE(offset) },
  F16: { size: 2, read: (bytes, offset) => float16(bytes.readUInt16LE(offset)) },
  BF16: { size: 2, read: (bytes, offset) => bfloat16(bytes.readUInt16LE(offset)) },
};

/** The tensors of a safetensors file: a length of 8 bytes, a header of so many bytes in JSON, and the numbers. */
export class Safetensors {
  readonly #file: string;
  readonly #header: JsonObject;
  readonly #data: Buffer;

  /** @throws EmbedderError `MODEL_INVALID` if the bytes are not those of a complete file. */
  constructor(file: string, bytes: Buffer) {
    this.#file = file;
    const start = 8 + headerLength(file, bytes, bytes.length);
    this.#header = parseHeader(file, bytes.subarray(8, start), bytes.length);
    this.#data = bytes.subarray(start);
  }

  /**
   * The numbers of a tensor, row-major.
   *
   * @throws EmbedderError `MODEL_INVALID` if there is none of this name and shape, or a number is not finite.
   */
  floats(name: string, shape: readonly number[]): Float32Array {
    const tensor = this.#header[name];
    const wanted = `shape ${JSON.stringify(shape)}`;
    if (!isObject(tensor)) throw this.#wrong(name, wanted, "no such tensor");
    const { dtype, shape: found, data_offsets: offsets } = tensor;
    const format = FORMATS[String(dtype)];
    if (!format) throw this.#wrong(name, "dtype F32, F16 or BF16", `dtype ${dtype}`);
    if (JSON.stringify(found) !== JSON.stringify(shape)) {
      throw this.#wrong(name, wanted, `shape ${JSON.stringify(found)}`);
    }
    const length = shape.reduce((product, size) => product * size, 1);
    const [start, end] = Array.isArray(offsets) ? offsets : [];
    if (!(Number.isSafeInteger(start) && start >= 0 && end - start === length * format.size)) {
      throw this.#wrong(name, `the place of ${length * format.size} bytes`, JSON.stringify(offsets));
    }
    const floats = new Float32Array(length);
    for (let index = 0; index < length; index++) {
      floats[index] = format.read(this.#data, start + index * format.size);
    }
    if (floats.every(Number.isFinite)) return floats;
    throw this.#wrong(name, "finite numbers", "NaN or infinity");
  }

  #wrong(name: string, expected: string, found: string): EmbedderError {
    return new EmbedderError("MODEL_INVALID", `${this.#file}: tensor ${name}: expected ${expected}, found ${found}`);
  }
}

/**
 * The shapes of a file's tensors, by name. Reads only its header.
 *
 * @throws EmbedderError `MODEL_NOT_FOUND` or `MODEL_INVALID`
 */
export function readTensorShapes(file: string): Map<string, readonly number[]> {
  const descriptor = openRegularFile(file);
  try {
    const { size } = fstatSync(descriptor);
    const read = (length: number, position: number) => {
      const bytes = Buffer.alloc(length);
      return bytes.subarray(0, readSync(descriptor, bytes, 0, length, position));
    };
    const length = headerLength(file, read(8, 0), size);
    const header = Object.entries(parseHeader(file, read(length, 8), size));
    const tensors = header.filter(([name]) => name !== "__metadata__");
    return new Map(tensors.map(([name, tensor]) => [name, shapeOf(file, name, tensor)]));
  } finally {
    closeSync(descriptor);
  }
}

function shapeOf(file: string, name: string, tensor: unknown): number[] {
  const shape = isObject(tensor) ? tensor.shape : undefined;
  if (Array.isArray(shape) && shape.every((size) => Number.isSafeInteger(size) && size >= 0)) return shape;
  throw incomplete(file, `tensor ${name} has no shape`);
}

function headerLength(file: string, start: Buffer, size: number): number {
  const length = start.length < 8 ? Number.POSITIVE_INFINITY : Number(start.readBigUInt64LE(0));
  if (length > Math.min(size - 8, MOST_HEADER)) throw incomplete(file, "its header is cut off");
  return length;
}

/** @param size Bytes of the file, which have to be as many as the header describes. */
function parseHeader(file: string, json: Buffer, size: number): JsonObject {
  const header = parseJsonObject(file, json);
  let length = 0;
  for (const tensor of Object.values(header)) {
    const offsets = isObject(tensor) ? tensor.data_offsets : undefined;
    if (Array.isArray(offsets)) length = Math.max(length, Number(offsets[1]));
  }
  const expected = 8 + json.length + length;
  if (expected === size) return header;
  throw incomplete(file, `its header describes ${expected} bytes, but it has ${size}`);
}

function incomplete(file: string, problem: string): EmbedderError {
  const message = `${file}: is not a complete safetensors file (${problem}); download it again`;
  return new EmbedderError("MODEL_INVALID", message);
}

function float16(bits: number): number {
  const [exponent, fraction] = [(bits >> 10) & 0x1f, bits & 0x3ff];
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 0x1f) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** The upper half of a float32. */
function bfloat16(bits: number): number {
  const [exponent, fraction] = [(bits >> 7) & 0xff, bits & 0x7f];
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 0xff) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (exponent === 0 ? fraction * 2 ** -133 : (1 + fraction / 128) * 2 ** (exponent - 127));
}
