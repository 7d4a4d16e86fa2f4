import { isUtf8 } from "node:buffer";
import { describeValue, EmbedderError } from "./errors.js";
import { MOST_SETTINGS, readRegularFile } from "./regular_file.js";

export type JsonObject = { [key: string]: unknown };

/** Objects and arrays in each other, as many as `serde_json` takes in the addon. */
const MOST_LEVELS = 127;

/** A settings file of a model folder: an object. Under a key, null is as good as nothing. `src/json_file.rs` reads the same. */
export class JsonFile {
  readonly path: string;
  readonly json: JsonObject;

  constructor(path: string, json: JsonObject) {
    this.path = path;
    this.json = json;
  }

  /** @throws EmbedderError `MODEL_NOT_FOUND`, or `MODEL_INVALID` when it cannot be read or holds no object. */
  static read(path: string): JsonFile {
    return new JsonFile(path, parseJsonObject(path, readRegularFile(path, MOST_SETTINGS)));
  }

  /**
   * As `read`; a file that is absent is as good as an empty object.
   *
   * @throws EmbedderError `MODEL_INVALID`
   */
  static readOptional(path: string): JsonFile {
    const value = readJsonIfPresent(path);
    return new JsonFile(path, value === undefined ? {} : asObject(path, value));
  }

  /** What stands under the first key that is there. */
  get(...keys: string[]): unknown {
    return keys.map((key) => this.json[key]).find((value) => value !== undefined && value !== null);
  }

  /** A whole number of at least 1, under the first key that is there. Like the others: `undefined` where it is absent. */
  count(...keys: string[]): number | undefined {
    const isCount = (value: unknown): value is number =>
      Number.isInteger(value) && (value as number) >= 1 && (value as number) < 2 ** 32;
    return this.typed(keys, "a whole number of at least 1 and below 2^32", isCount);
  }

  number(...keys: string[]): number | undefined {
    return this.typed(keys, "a number", (value) => typeof value === "number");
  }

  flag(key: string): boolean | undefined {
    return this.typed([key], "true or false", (value) => typeof value === "boolean");
  }

  text(key: string): string | undefined {
    return this.typed([key], "a string", (value) => typeof value === "string");
  }

  /** @throws EmbedderError `MODEL_INVALID` for a value that is not as `isRight` has it. */
  typed<T>(keys: string[], expected: string, isRight: (value: unknown) => value is T): T | undefined {
    const value = this.get(...keys);
    if (value === undefined || isRight(value)) return value;
    throw this.invalid(`${keys[0]}: expected ${expected}, found ${describeValue(value)}`);
  }

  /** A setting that has to be there. */
  required<T>(value: T | undefined, key: string): T {
    if (value === undefined) throw this.invalid(`${key} is missing`);
    return value;
  }

  invalid(problem: string): EmbedderError {
    return new EmbedderError("MODEL_INVALID", `${this.path}: ${problem}`);
  }

  unsupported(feature: string, hint: string): EmbedderError {
    return new EmbedderError("MODEL_UNSUPPORTED", `${this.path}: ${feature} is not supported; ${hint}`);
  }
}

/**
 * What a JSON file of a model folder says; `undefined` when there is no such file.
 *
 * @throws EmbedderError `MODEL_INVALID` with file, line and column when it is not JSON, or when it cannot be read.
 */
export function readJsonIfPresent(file: string): unknown {
  try {
    return parseJson(file, readRegularFile(file, MOST_SETTINGS));
  } catch (error) {
    if (error instanceof EmbedderError && error.code === "MODEL_NOT_FOUND") return undefined;
    throw error;
  }
}

/**
 * What the bytes of a file say. What `serde_json` refuses in the addon and `JSON.parse` does not is refused, too.
 *
 * @throws EmbedderError `MODEL_INVALID` with file, line and column when it is not JSON.
 */
function parseJson(file: string, bytes: Buffer): unknown {
  const invalid = (problem: string, cause?: unknown) =>
    new EmbedderError("MODEL_INVALID", `${file}${problem}`, { cause });
  if (!isUtf8(bytes)) throw invalid(" is not valid JSON: it is not UTF-8");
  const text = bytes.toString("utf8");
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const { line, column } = positionOf(text, jsonErrorOffset(text));
    throw invalid(
      ` is not valid JSON at line ${line}, column ${column}; the file may be cut off: fetch it again`,
      cause,
    );
  }
  let outer = isContainer(value) ? [value] : [];
  for (let levels = 1; outer.length > 0; levels++) {
    if (levels > MOST_LEVELS) throw invalid(`: expected at most ${MOST_LEVELS} levels of JSON, found more`);
    const inner: object[] = [];
    for (const [key, element] of outer.flatMap(Object.entries)) {
      const isNumber = typeof element !== "number" || Number.isFinite(element);
      if (!isNumber) throw invalid(` is not valid JSON: ${key}: a number out of range`);
      const isText = key.isWellFormed() && (typeof element !== "string" || element.isWellFormed());
      if (!isText) throw invalid(` is not valid JSON: ${key}: half a surrogate pair`);
      if (isContainer(element)) inner.push(element);
    }
    outer = inner;
  }
  return value;
}

/**
 * As `parseJson`, of a file that holds an object.
 *
 * @throws EmbedderError `MODEL_INVALID`
 */
export function parseJsonObject(file: string, bytes: Buffer): JsonObject {
  return asObject(file, parseJson(file, bytes));
}

function asObject(file: string, value: unknown): JsonObject {
  if (isObject(value)) return value;
  throw new EmbedderError("MODEL_INVALID", `${file}: expected a JSON object`);
}

function isContainer(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function positionOf(text: string, offset: number): { line: number; column: number } {
  const before = text.slice(0, offset);
  const lineStart = before.lastIndexOf("\n") + 1;
  return { line: before.split("\n").length, column: offset - lineStart + 1 };
}

/**
 * Where a text stops being JSON. `JSON.parse` itself tells a position only for some mistakes, and not on every version
 * of Node, so this reads the text once more: one token at a time, with a stack of what is open.
 */
function jsonErrorOffset(text: string): number {
  const token =
    // biome-ignore lint/suspicious/noControlCharactersInRegex: JSON strings may not hold them.
    /[{}[\]:,]|"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;
  const open: string[] = [];
  let expected: "value" | "value or end" | "key" | "key or end" | "colon" | "comma or end" | "nothing" = "value";
  let offset = 0;
  for (;;) {
    while (" \t\r\n".includes(text[offset] ?? "x")) offset++;
    token.lastIndex = offset;
    const found = token.exec(text)?.[0];
    if (found === undefined) return offset;
    const opener = open.at(-1);
    const closes = (found === "}" && opener === "{") || (found === "]" && opener === "[");
    if (closes && expected.endsWith("or end")) {
      open.pop();
      expected = open.length > 0 ? "comma or end" : "nothing";
    } else if (found === "," && expected === "comma or end") {
      expected = opener === "{" ? "key" : "value";
    } else if (found === ":" && expected === "colon") {
      expected = "value";
    } else if (found.startsWith('"') && expected.startsWith("key")) {
      expected = "colon";
    } else if (expected.startsWith("value") && !"}],:".includes(found)) {
      if (found === "{" || found === "[") {
        open.push(found);
        expected = found === "{" ? "key or end" : "value or end";
      } else {
        expected = open.length > 0 ? "comma or end" : "nothing";
      }
    } else {
      return offset;
    }
    offset = token.lastIndex;
  }
}
