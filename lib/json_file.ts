import { isUtf8 } from "node:buffer";
import { describeValue, EmbedderError } from "./errors.js";
import { MOST_SETTINGS, readRegularFile } from "./regular_file.js";

export type JsonObject = { [key: string]: unknown };

/** Most nested objects and arrays, as `serde_json` in the addon accepts them. */
const MOST_LEVELS = 127;

/** A settings file of a model folder: a JSON object, in which null means absent. `src/json_file.rs` accepts the same. */
export class JsonFile {
  readonly path: string;
  readonly json: JsonObject;

  constructor(path: string, json: JsonObject) {
    this.path = path;
    this.json = json;
  }

  /** @throws EmbedderError `MODEL_NOT_FOUND`, or `MODEL_INVALID` if it cannot be read or is not an object. */
  static read(path: string): JsonFile {
    return new JsonFile(path, parseJsonObject(path, readRegularFile(path, MOST_SETTINGS)));
  }

  /**
   * As `read`; an absent file reads as an empty object.
   *
   * @throws EmbedderError `MODEL_INVALID`
   */
  static readOptional(path: string): JsonFile {
    const value = readJsonIfPresent(path);
    return new JsonFile(path, value === undefined ? {} : asObject(path, value));
  }

  /** The value of the first key that is present. */
  get(...keys: string[]): unknown {
    return keys.map((key) => this.json[key]).find((value) => value !== undefined && value !== null);
  }

  /** A whole number of at least 1, from the first key that is present; like the others `undefined` if all are absent. */
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

  /** @throws EmbedderError `MODEL_INVALID` for a value that `isRight` rejects. */
  typed<T>(keys: string[], expected: string, isRight: (value: unknown) => value is T): T | undefined {
    const value = this.get(...keys);
    if (value === undefined || isRight(value)) return value;
    throw this.invalid(`${keys[0]}: expected ${expected}, found ${describeValue(value)}`);
  }

  /** A setting that must be present. */
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
 * The contents of a JSON file; `undefined` if there is no such file.
 *
 * @throws EmbedderError `MODEL_INVALID` with file, line and column if it is not JSON, or if it cannot be read.
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
 * Parses the bytes of a file. Also rejects what `JSON.parse` accepts, but `serde_json` in the addon does not.
 *
 * @throws EmbedderError `MODEL_INVALID` with file, line and column if it is not JSON.
 */
function parseJson(file: string, bytes: Buffer): unknown {
  if (!isUtf8(bytes)) throw new EmbedderError("MODEL_INVALID", `${file} is not valid JSON: it is not UTF-8`);
  const text = bytes.toString("utf8");
  const invalid = (offset: number, problem: string, cause?: unknown) => {
    const { line, column } = positionOf(text, offset);
    const message = `${file} is not valid JSON at line ${line}, column ${column}; ${problem}`;
    return new EmbedderError("MODEL_INVALID", message, { cause });
  };
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw invalid(jsonErrorOffset(text), "the file may be cut off: fetch it again", cause);
  }
  const excess = jsonExcess(text);
  if (excess) throw invalid(excess.offset, excess.problem);
  return value;
}

/**
 * What `serde_json` refuses in a text that is JSON. Found in the text, because `JSON.parse` drops all but the last value
 * of a key that occurs twice.
 */
function jsonExcess(text: string): { offset: number; problem: string } | undefined {
  const number = /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
  let levels = 0;
  for (let offset = 0; offset < text.length; offset++) {
    const character = text[offset] as string;
    if (character === '"') {
      const end = endOfString(text, offset);
      const isWellFormed = (JSON.parse(text.slice(offset, end)) as string).isWellFormed();
      if (!isWellFormed) return { offset, problem: "found half a surrogate pair" };
      offset = end - 1;
    } else if (character === "{" || character === "[") {
      levels++;
      const problem = `expected at most ${MOST_LEVELS} levels of objects and arrays, found more`;
      if (levels > MOST_LEVELS) return { offset, problem };
    } else if (character === "}" || character === "]") {
      levels--;
    } else if (character === "-" || (character >= "0" && character <= "9")) {
      number.lastIndex = offset;
      const found = number.exec(text)?.[0] ?? character;
      if (!Number.isFinite(Number(found))) return { offset, problem: "found a number out of range" };
      offset += found.length - 1;
    }
  }
  return undefined;
}

/** The offset after the string that begins at `start`. */
function endOfString(text: string, start: number): number {
  for (let end = start + 1; ; end++) {
    end = text.indexOf('"', end);
    let backslashes = 0;
    while (text[end - 1 - backslashes] === "\\") backslashes++;
    if (backslashes % 2 === 0) return end + 1;
  }
}

/**
 * As `parseJson`, for a file that must contain an object.
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

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function positionOf(text: string, offset: number): { line: number; column: number } {
  const before = text.slice(0, offset);
  const lineStart = before.lastIndexOf("\n") + 1;
  return { line: before.split("\n").length, column: offset - lineStart + 1 };
}

/**
 * Where a text stops being JSON. `JSON.parse` reports a position only for some mistakes, and not in every version of
 * Node.js, so this reads the text again: one token at a time, with a stack of open brackets.
 */
function jsonErrorOffset(text: string): number {
  const token =
    // biome-ignore lint/suspicious/noControlCharactersInRegex: JSON strings must not contain them.
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
