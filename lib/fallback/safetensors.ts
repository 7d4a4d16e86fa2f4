import { EmbedderError } from "../errors.js";
import { isObject, type JsonObject, parseJsonObject } from "../json_file.js";

/** Most bytes of a safetensors file that is read whole. */
export const MOST_SAFETENSORS = 2 ** 31 - 1;

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
    const headerLength = bytes.length < 8 ? Number.POSITIVE_INFINITY : Number(bytes.readBigUInt64LE(0));
    if (headerLength > bytes.length - 8) throw this.#incomplete("its header is cut off");
    this.#header = parseJsonObject(file, bytes.subarray(8, 8 + headerLength));
    this.#data = bytes.subarray(8 + headerLength);
    let length = 0;
    for (const tensor of Object.values(this.#header)) {
      const offsets = isObject(tensor) ? tensor.data_offsets : undefined;
      if (Array.isArray(offsets)) length = Math.max(length, Number(offsets[1]));
    }
    if (length !== this.#data.length) {
      const expected = 8 + headerLength + length;
      throw this.#incomplete(`its header describes ${expected} bytes, but it has ${bytes.length}`);
    }
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

  #incomplete(problem: string): EmbedderError {
    const message = `${this.#file}: is not a complete safetensors file (${problem}); download it again`;
    return new EmbedderError("MODEL_INVALID", message);
  }

  #wrong(name: string, expected: string, found: string): EmbedderError {
    return new EmbedderError("MODEL_INVALID", `${this.#file}: tensor ${name}: expected ${expected}, found ${found}`);
  }
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
