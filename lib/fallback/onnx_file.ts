import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  lstatSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import * as path from "node:path";
import type { ModelOptions } from "../engine.js";
import { describeValue, EmbedderError } from "../errors.js";
import { JsonFile, parseJsonObject } from "../json_file.js";
import { type EncoderFacts, EXPORTED_GRAPHS, type ModelFolder } from "../model_dir.js";
import { isPlainPath, MOST_GRAPH, openRegularFile, readRegularFile } from "../regular_file.js";
import { LoadedFiles } from "./loaded_files.js";

const FLOAT_FILES = [EXPORTED_GRAPHS[0], "model.onnx", "onnx/model.onnx"];
const QUANTIZED_FILES: string[] = [EXPORTED_GRAPHS[1], "onnx/model_quantized.onnx", "model_quantized.onnx"];

export interface OnnxFile {
  path: string;
  dtype: "f32" | "int8";
  /** SHA-256 of each file that contains weights, sorted by name. */
  weightHashes: string[];
  /** What an exported graph says of its encoder; for other graphs `undefined`. */
  encoder: EncoderFacts | undefined;
  /** The graph and its weights, opened before any of them was read. */
  files: LoadedFiles;
}

/**
 * The ONNX file of a model folder to run, with the hashes of its weights.
 *
 * @throws EmbedderError `MODEL_NOT_FOUND` naming the missing graph or external data, `MODEL_INVALID` for a graph that cannot
 * be read or refers to files outside its folder.
 */
export function findOnnxFile(
  model: Pick<ModelFolder, "dir" | "transformerDir" | "configHash">,
  dtype: NonNullable<ModelOptions["dtype"]>,
): OnnxFile {
  if (dtype === "f16" || dtype === "bf16") {
    const message = `dtype: expected "auto", "f32" or "int8" with the backend onnx-js, found "${dtype}"`;
    throw new EmbedderError("INVALID_ARGUMENT", message);
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
  const bytes = readRegularFile(found.file, MOST_GRAPH);
  const isExported = (EXPORTED_GRAPHS as readonly string[]).includes(found.name);
  const beside = (name: string) => path.join(path.dirname(found.file), name);
  // An int8 graph need not refer to the files that it was quantized from.
  const locations = externalDataLocations(found.file, bytes);
  const sources = isExported ? (property(bytes, "weights_files")?.split(",") ?? []) : [];
  const external = [...new Set([...locations, ...sources])];
  for (const name of external) {
    // For ONNX Runtime, a certain name with asterisks is an address in memory.
    if (!isPlainPath(name) || name.includes("*")) {
      const message = `${found.file}: external data: expected a path inside the model folder, found ${describeValue(name)}`;
      throw new EmbedderError("MODEL_INVALID", message);
    }
  }
  const externalFiles = external.map(beside);
  for (const file of externalFiles) {
    if (!existsSync(file)) {
      throw new EmbedderError("MODEL_NOT_FOUND", `${file} does not exist; ${found.file} keeps its weights there`);
    }
  }
  const files = new LoadedFiles([found.file, ...externalFiles]);
  // An exported graph has only the weights of the safetensors files, so their hashes identify the vectors.
  const weights = isExported ? externalFiles : [found.file, ...externalFiles];
  weights.sort((a, b) => (path.basename(a) < path.basename(b) ? -1 : 1));
  const weightHashes = weights.map((file) => sha256OfFile(file));
  const foundDtype = QUANTIZED_FILES.includes(found.name) ? "int8" : "f32";
  if (isExported && property(bytes, "weights_sha256") !== weightHashes.join()) {
    const message = `${found.file} was exported for other weights than those beside it; run ${exportCall(foundDtype)} again`;
    throw new EmbedderError("MODEL_INVALID", message);
  }
  const encoder = isExported ? exportedEncoder(found.file, bytes) : undefined;
  if (encoder && encoder.configHash !== model.configHash) {
    throw new EmbedderError(
      "MODEL_INVALID",
      `${found.file} was exported for another config.json than the one of its folder; run ${exportCall(foundDtype)} again`,
    );
  }
  return { path: found.file, dtype: foundDtype, weightHashes, encoder, files };
}

/** What the addon writes into the graphs that it exports; see `ExportedEncoder` in `src/runtime/onnx/builder.rs`. */
function exportedEncoder(file: string, graph: Buffer): EncoderFacts & { configHash: string | undefined } {
  const facts = new JsonFile(file, parseJsonObject(file, Buffer.from(property(graph, "encoder") ?? "{}")));
  const count = (key: string) => facts.required(facts.count(key), key);
  return {
    ...{ width: count("width"), vocabulary: count("vocabulary"), positions: count("positions") },
    layerNormBeforeTruncation: facts.flag("layerNormBeforeTruncation"),
    configHash: facts.text("configSha256"),
  };
}

/**
 * ONNX Runtime reads weights only from the graph's own folder, after following links. In a snapshot of the Hub's cache the
 * weights are links to blobs, so an exported graph has to become one, too. On failure, the graph is removed.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` if the weights are a link to anywhere else, `MODEL_INVALID` if the blob cannot be
 * written.
 */
export function keepBesideWeights(graph: string): void {
  const bytes = readRegularFile(graph, MOST_GRAPH);
  const folder = path.dirname(graph);
  const [weights] = externalDataLocations(graph, bytes).map((name) => path.join(folder, name));
  if (weights === undefined || !lstatSync(weights).isSymbolicLink()) return;
  const target = realpathSync(weights);
  // The blobs of the model itself, or those that Python's `huggingface_hub` shares between models.
  const [, cache] = /^(.*[\\/])models--[^\\/]+[\\/]snapshots[\\/]/.exec(realpathSync(folder)) ?? [];
  if (cache === undefined || !target.startsWith(cache)) {
    rmSync(graph);
    const message =
      `${weights} is a link to ${target}, but ONNX Runtime reads weights only from the folder of the graph: ` +
      "replace the link by the file itself";
    throw new EmbedderError("MODEL_UNSUPPORTED", message);
  }
  const blob = path.join(path.dirname(target), createHash("sha256").update(bytes).digest("hex"));
  const temporary = `${graph}.${process.pid}.tmp`;
  try {
    writeFileSync(temporary, bytes);
    renameSync(temporary, blob);
    symlinkSync(path.relative(folder, blob), temporary);
    renameSync(temporary, graph);
  } catch (cause) {
    for (const file of [temporary, graph]) rmSync(file, { force: true });
    const message = `${blob}: cannot be written: ${(cause as Error).message}`;
    throw new EmbedderError("MODEL_INVALID", message, { cause });
  }
}

function exportCall(dtype: string): string {
  return dtype === "int8" ? 'exportOnnx(modelDir, { dtype: "int8" })' : "exportOnnx(modelDir)";
}

function sha256OfFile(file: string): string {
  const hash = createHash("sha256");
  const block = Buffer.allocUnsafe(1 << 20);
  const descriptor = openRegularFile(file);
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

/** Fields that may contain tensors, by number; see `onnx.proto`. */
interface Schema {
  readonly [field: number]: Schema;
}
const ENTRY: Schema = {};
const TENSOR: Schema = { 13: ENTRY };
const SPARSE_TENSOR: Schema = { 1: TENSOR, 2: TENSOR };
// An attribute may contain graphs, whose nodes have attributes.
const GRAPH: { [field: number]: Schema } = { 5: TENSOR, 15: SPARSE_TENSOR };
const ATTRIBUTE: Schema = { 5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE_TENSOR, 23: SPARSE_TENSOR };
const NODE: Schema = { 5: ATTRIBUTE };
GRAPH[1] = NODE;
const FUNCTION: Schema = { 7: NODE, 11: ATTRIBUTE };
const TRAINING: Schema = { 1: GRAPH, 2: GRAPH };
const MODEL: Schema = { 7: GRAPH, 20: TRAINING, 25: FUNCTION };

/**
 * The names of the files that tensors anywhere in an ONNX model refer to.
 *
 * @throws EmbedderError `MODEL_INVALID` for anything but a complete ONNX model.
 */
function externalDataLocations(file: string, model: Buffer): string[] {
  const locations = new Set<string>();
  const messages: { bytes: Buffer; schema: Schema }[] = [{ bytes: model, schema: MODEL }];
  try {
    for (let message = messages.pop(); message; message = messages.pop()) {
      for (const { number, bytes } of protobufFields(message.bytes)) {
        const schema = message.schema[number];
        if (schema === ENTRY) {
          const { key, value } = keyAndValue(bytes);
          // The name may start with "./".
          if (key === "location") locations.add(value.replace(/^(\.\/)+/, ""));
        } else if (schema) {
          messages.push({ bytes, schema });
        }
      }
    }
  } catch (cause) {
    const message = `${file}: is not a complete ONNX model: ${(cause as Error).message}; fetch it again`;
    throw new EmbedderError("MODEL_INVALID", message, { cause });
  }
  return [...locations];
}

/** A property of an ONNX model. */
function property(model: Buffer, name: string): string | undefined {
  // ModelProto.metadata_props = 14
  const properties = [...protobufFields(model)].filter(({ number }) => number === 14);
  return properties.map(({ bytes }) => keyAndValue(bytes)).findLast(({ key }) => key === name)?.value;
}

/** StringStringEntryProto { key = 1, value = 2 }; the last one counts. */
function keyAndValue(entry: Buffer): { key: string; value: string } {
  const texts = ["", "", ""];
  for (const { number, bytes } of protobufFields(entry)) texts[number] = bytes.toString("utf8");
  return { key: texts[1] ?? "", value: texts[2] ?? "" };
}

/** The length-delimited fields of a protobuf message. Throws for anything that parsers may read differently. */
function* protobufFields(message: Buffer): Generator<{ number: number; bytes: Buffer }> {
  let offset = 0;
  const varint = (mostBytes: number): number => {
    let value = 0;
    for (let index = 0; index < mostBytes; index++) {
      const byte = message[offset++];
      if (byte === undefined) throw new Error("it ends in the middle of a number");
      value += (byte & 127) * 128 ** index;
      if (byte < 128) return value;
    }
    throw new Error("a number is too long");
  };
  while (offset < message.length) {
    const tag = varint(5);
    const [number, wireType] = [Math.floor(tag / 8), tag & 7];
    if (number === 0 || tag >= 2 ** 32) throw new Error(`there is no field ${number}`);
    let length = 0;
    if (wireType === 0) varint(10);
    else if (wireType === 1) length = 8;
    else if (wireType === 5) length = 4;
    else if (wireType === 2) length = varint(10);
    else throw new Error(`there is no wire type ${wireType}`);
    if (length > message.length - offset) throw new Error("it ends in the middle of a field");
    if (wireType === 2) yield { number, bytes: message.subarray(offset, offset + length) };
    offset += length;
  }
}
