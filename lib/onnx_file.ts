import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  lstatSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import * as path from "node:path";
import type { ModelOptions } from "./engine.js";
import { EmbedderError } from "./errors.js";
import { LoadedFiles } from "./loaded_files.js";
import type { ModelDir } from "./model_dir.js";

/** The graphs that the addon exports; their weights are those of `model.safetensors`, or quantized from them. */
export const EXPORTED_GRAPHS = ["semantic-search-native.onnx", "semantic-search-native.int8.onnx"] as const;
const FLOAT_FILES = [EXPORTED_GRAPHS[0], "model.onnx", "onnx/model.onnx"];
const QUANTIZED_FILES: string[] = [EXPORTED_GRAPHS[1], "onnx/model_quantized.onnx", "model_quantized.onnx"];

export interface OnnxFile {
  path: string;
  dtype: "f32" | "int8";
  /** SHA-256 of each file that holds weights, in the order of their names. */
  weightHashes: string[];
  /** The graph and its weights as they were before any of them was read. */
  files: LoadedFiles;
}

/**
 * The ONNX file of a model folder to run, with the hashes of its weights.
 *
 * @throws EmbedderError `MODEL_NOT_FOUND` naming what was looked for or which external data is missing.
 */
export function findOnnxFile(model: ModelDir, dtype: NonNullable<ModelOptions["dtype"]>): OnnxFile {
  if (dtype === "f16" || dtype === "bf16") {
    throw new EmbedderError(
      "INVALID_ARGUMENT",
      `dtype: expected "auto", "f32" or "int8" with the backend onnx-js, found "${dtype}"`,
    );
  }
  const names = {
    auto: [...FLOAT_FILES, ...QUANTIZED_FILES],
    f32: FLOAT_FILES,
    int8: QUANTIZED_FILES,
  }[dtype];
  const dirs = [...new Set([model.dir, model.transformerDir].map((dir) => path.resolve(dir)))];
  const candidates = names.flatMap((name) => dirs.map((dir) => ({ name, file: path.join(dir, name) })));
  const found = candidates.find(({ file }) => existsSync(file));
  if (!found) {
    throw new EmbedderError(
      "MODEL_NOT_FOUND",
      `${model.dir} has no ONNX file for the backend onnx-js (looked for ${names.join(", ")}); ` +
        `${exportCall(dtype)} writes one where the addon runs`,
    );
  }
  const bytes = readFileSync(found.file);
  const isExported = (EXPORTED_GRAPHS as readonly string[]).includes(found.name);
  const beside = (name: string) => path.join(path.dirname(found.file), name);
  // What an int8 graph was quantized from need not be what it points into.
  const sources = isExported ? (property(bytes, "weights_files")?.split(",") ?? []) : [];
  const external = [...new Set([...externalDataLocations(bytes), ...sources])].map(beside);
  for (const file of external) {
    if (!existsSync(file)) {
      throw new EmbedderError("MODEL_NOT_FOUND", `${file} does not exist; ${found.file} keeps its weights there`);
    }
  }
  const files = new LoadedFiles([found.file, ...external]);
  // An exported graph has no weights but those of the safetensors files: its vectors are theirs, and so is its name.
  const weights = isExported ? external : [found.file, ...external];
  weights.sort((a, b) => (path.basename(a) < path.basename(b) ? -1 : 1));
  const weightHashes = weights.map((file) => sha256OfFile(file));
  const foundDtype = QUANTIZED_FILES.includes(found.name) ? "int8" : "f32";
  if (isExported && property(bytes, "weights_sha256") !== weightHashes.join()) {
    throw new EmbedderError(
      "MODEL_INVALID",
      `${found.file} was exported for other weights than those beside it; run ${exportCall(foundDtype)} again`,
    );
  }
  return { path: found.file, dtype: foundDtype, weightHashes, files };
}

/**
 * ONNX Runtime reads weights beside the graph only, and looks where links lead. In a snapshot of the Hub's cache the
 * weights are links to blobs: an exported graph becomes one, too.
 */
export function keepBesideWeights(graph: string): void {
  const bytes = readFileSync(graph);
  const [weights] = externalDataLocations(bytes).map((name) => path.join(path.dirname(graph), name));
  if (weights === undefined || !lstatSync(weights).isSymbolicLink()) return;
  const blob = path.join(path.dirname(realpathSync(weights)), createHash("sha256").update(bytes).digest("hex"));
  const temporary = `${graph}.${process.pid}.tmp`;
  writeFileSync(temporary, bytes);
  renameSync(temporary, blob);
  symlinkSync(path.relative(path.dirname(graph), blob), temporary);
  renameSync(temporary, graph);
}

function exportCall(dtype: string): string {
  return dtype === "int8" ? 'exportOnnx(modelDir, { dtype: "int8" })' : "exportOnnx(modelDir)";
}

export function sha256OfFile(file: string): string {
  const hash = createHash("sha256");
  const block = Buffer.allocUnsafe(1 << 20);
  const descriptor = openSync(file, "r");
  try {
    for (;;) {
      const length = readSync(descriptor, block);
      if (length === 0) break;
      hash.update(block.subarray(0, length));
    }
  } finally {
    closeSync(descriptor);
  }
  return hash.digest("hex");
}

/** Names of the files into which the initializers of an ONNX model point, each once. */
function externalDataLocations(model: Buffer): string[] {
  const locations = new Set<string>();
  // ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.external_data = 13, StringStringEntryProto { key = 1, value = 2 }
  for (const graph of protobufFields(model, 7)) {
    for (const tensor of protobufFields(graph, 5)) {
      for (const entry of protobufFields(tensor, 13)) {
        const [key] = protobufFields(entry, 1);
        const [value] = protobufFields(entry, 2);
        if (key?.toString() === "location" && value) locations.add(value.toString());
      }
    }
  }
  return [...locations];
}

/** A property of an ONNX model. */
function property(model: Buffer, name: string): string | undefined {
  // ModelProto.metadata_props = 14, StringStringEntryProto { key = 1, value = 2 }
  for (const entry of protobufFields(model, 14)) {
    const [key] = protobufFields(entry, 1);
    const [value] = protobufFields(entry, 2);
    if (key?.toString() === name) return value?.toString();
  }
  return undefined;
}

/** The length-delimited fields with this number of one protobuf message; damaged messages simply end early. */
function* protobufFields(message: Buffer, number: number): Generator<Buffer> {
  let offset = 0;
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; offset < message.length; scale *= 128) {
      const byte = message[offset++] ?? 0;
      value += (byte & 127) * scale;
      if (byte < 128) break;
    }
    return value;
  };
  while (offset < message.length) {
    const tag = varint();
    const wireType = tag & 7;
    if (wireType === 0) varint();
    else if (wireType === 1) offset += 8;
    else if (wireType === 5) offset += 4;
    else if (wireType === 2) {
      const length = varint();
      if (Math.floor(tag / 8) === number) yield message.subarray(offset, offset + length);
      offset += length;
    } else return;
  }
}
