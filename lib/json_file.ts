import { EmbedderError } from "./errors.js";
import { MOST_SETTINGS, readRegularFile } from "./regular_file.js";

export type JsonObject = { [key: string]: unknown };

/** Levels of objects and arrays in each other, as `serde_json` has them in the addon. */
const MOST_LEVELS = 128;

/**
 * A JSON file of a model folder whose top level is an object or array; `undefined` when there is no such file.
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
 * What the bytes of a file say.
 *
 * @throws EmbedderError `MODEL_INVALID` with file, line and column when it is not JSON.
 */
function parseJson(file: string, bytes: Buffer): unknown {
  const text = bytes.toString("utf8");
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const { line, column } = positionOf(text, jsonErrorOffset(text));
    throw new EmbedderError(
      "MODEL_INVALID",
      `${file} is not valid JSON at line ${line}, column ${column}; the file may be cut off: fetch it again`,
      { cause },
    );
  }
  // `JSON.parse` takes any number of levels; what works on the value afterwards may not.
  let level = [value];
  for (let levels = 0; level.length > 0; levels++) {
    if (levels > MOST_LEVELS) {
      throw new EmbedderError("MODEL_INVALID", `${file}: expected at most ${MOST_LEVELS} levels of JSON, found more`);
    }
    level = level.flatMap((outer) => (typeof outer === "object" && outer !== null ? Object.values(outer) : []));
  }
  return value;
}

/** As `readJsonIfPresent`, for a file that holds an object. */
export function readJsonObjectIfPresent(file: string): JsonObject | undefined {
  const value = readJsonIfPresent(file);
  return value === undefined ? undefined : asObject(file, value);
}

/** As `readJsonIfPresent`, for the bytes of a file that holds an object. */
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
