/** Writes ONNX models. Only what an encoder's graph needs; the message numbers are those of `onnx.proto`. */

import { closeSync, openSync, renameSync, writeSync } from "node:fs";

const FLOAT = 1;
const INT64 = 7;
const ELEMENT_TYPES = { float: FLOAT, int32: 6, int64: INT64 };
const EXTERNAL = 1;
/** `AttributeProto.AttributeType` */
const ATTRIBUTE = { float: 1, int: 2, ints: 7 };

// A message is a list of buffers, so that weights are never copied.

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Buffer.from([...bytes, value]);
}

/** One field: a non-negative number, a text, bytes, or a message. */
function field(number, value) {
  if (typeof value === "number") return [varint(number * 8), varint(value)];
  const parts = Array.isArray(value) ? value : [Buffer.from(value)];
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return [varint(number * 8 + 2), varint(length), ...parts];
}

function attribute(name, value) {
  const head = field(1, name);
  if (Array.isArray(value)) {
    return [...head, ...value.flatMap((item) => int64Field(8, item)), ...field(20, ATTRIBUTE.ints)];
  }
  if (typeof value === "object") {
    const float = Buffer.alloc(5);
    float[0] = 2 * 8 + 5;
    float.writeFloatLE(value.float, 1);
    return [...head, float, ...field(20, ATTRIBUTE.float)];
  }
  return [...head, ...int64Field(3, value), ...field(20, ATTRIBUTE.int)];
}

/** Negative numbers take ten bytes, two's complement. */
function int64Field(number, value) {
  if (value >= 0) return field(number, value);
  let rest = BigInt.asUintN(64, BigInt(value));
  const bytes = [];
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  return [varint(number * 8), Buffer.from([...bytes, Number(rest)])];
}

function valueInfo(name, type, shape) {
  const dimensions = shape.flatMap((size) => field(1, field(typeof size === "number" ? 1 : 2, size)));
  return [...field(1, name), ...field(2, field(1, [...field(1, type), ...field(2, dimensions)]))];
}

export function bytesOf(array) {
  return Buffer.from(array.buffer, array.byteOffset, array.byteLength);
}

/** A graph that grows operator by operator; values are known by their names. */
export class OnnxGraph {
  #nodes = [];
  #initializers = [];
  #inputs = [];
  #outputs = [];
  #known = new Set();

  /** @param {keyof typeof ELEMENT_TYPES} type */
  input(name, type, shape) {
    this.#inputs.push(valueInfo(name, ELEMENT_TYPES[type], shape));
    return name;
  }

  output(name, shape) {
    this.#outputs.push(valueInfo(name, FLOAT, shape));
  }

  /** Adds an operator and returns the name of its result, or of all of them where `outputs` is above 1. */
  node(operator, inputs, attributes = {}, { outputs = 1, name = `${operator}_${this.#nodes.length}` } = {}) {
    const names = outputs === 1 ? [name] : Array.from({ length: outputs }, (_, i) => `${name}_${i}`);
    this.#nodes.push([
      ...inputs.flatMap((input) => field(1, input)),
      ...names.flatMap((output) => field(2, output)),
      // Old versions of ONNX Runtime refuse some graphs of nameless nodes.
      ...field(3, name),
      ...field(4, operator),
      ...Object.entries(attributes).flatMap(([key, value]) => field(5, attribute(key, value))),
    ]);
    return outputs === 1 ? name : names;
  }

  /** A float tensor inside the file. */
  floats(name, shape, values) {
    return this.#initializer(name, FLOAT, shape, () => field(9, bytesOf(Float32Array.from(values))));
  }

  ints(name, values, shape = [values.length]) {
    return this.#initializer(name, INT64, shape, () => field(9, bytesOf(BigInt64Array.from(values, BigInt))));
  }

  /** A float tensor whose values are handed over as they are. */
  weight(name, shape, values) {
    return this.#initializer(name, FLOAT, shape, () => field(9, bytesOf(values)));
  }

  /** A float tensor that lies in another file of the folder. */
  externalWeight(name, shape, { location, offset, length }) {
    const entry = (key, value) => field(13, [...field(1, key), ...field(2, String(value))]);
    return this.#initializer(name, FLOAT, shape, () => [
      ...entry("location", location),
      ...entry("offset", offset),
      ...entry("length", length),
      ...field(14, EXTERNAL),
    ]);
  }

  #initializer(name, type, shape, data) {
    if (!this.#known.has(name)) {
      this.#known.add(name);
      const dimensions = shape.flatMap((size) => field(1, size));
      this.#initializers.push([...dimensions, ...field(2, type), ...field(8, name), ...data()]);
    }
    return name;
  }

  /** The file's content, in parts. */
  parts() {
    const graph = [
      ...this.#nodes.flatMap((node) => field(1, node)),
      ...field(2, "encoder"),
      ...this.#initializers.flatMap((initializer) => field(5, initializer)),
      ...this.#inputs.flatMap((input) => field(11, input)),
      ...this.#outputs.flatMap((output) => field(12, output)),
    ];
    const opset = [...field(1, ""), ...field(2, 17)];
    return [...field(1, 8), ...field(7, graph), ...field(8, opset)];
  }

  write(file) {
    const partial = `${file}.part`;
    const handle = openSync(partial, "w");
    for (const part of this.parts()) for (let at = 0; at < part.length; ) at += writeSync(handle, part, at);
    closeSync(handle);
    renameSync(partial, file);
  }
}
