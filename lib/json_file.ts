import { readFileSync } from "node:fs";
import { EmbedderError } from "./errors.js";

export type JsonObject = { [key: string]: unknown };

/**
 * A JSON file of a model folder whose top level is an object or array; `undefined` when there is no such file.
 *
 * @throws EmbedderError `MODEL_INVALID` with file, line and column when it is not JSON.
 */
export function readJsonIfPresent(file: string): unknown {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new EmbedderError("MODEL_NOT_FOUND", `cannot read ${file}: ${message}`, { cause });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    const { line, column } = positionOf(text, jsonErrorOffset(text));
    throw new EmbedderError(
      "MODEL_INVALID",
      `${file} is not valid JSON at line ${line}, column ${column}; the file may be cut off: fetch it again`,
      { cause },
    );
  }
}

/** As `readJsonIfPresent`, for a file that holds an object. */
export function readJsonObjectIfPresent(file: string): JsonObject | undefined {
  const value = readJsonIfPresent(file);
  if (value === undefined || isObject(value)) return value;
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
