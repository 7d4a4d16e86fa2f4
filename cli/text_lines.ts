/** Reads lines of input as texts to embed, in bounded memory. */

/** Longer lines are skipped. */
export const MAX_LINE_BYTES = 16 << 20;

/** A line, or why it cannot be used. */
export type Line = { number: number; bytes: Buffer } | { number: number; problem: string };

const NEWLINE = 0x0a;
const CARRIAGE_RETURN = 0x0d;
const BYTE_ORDER_MARK = Buffer.from([0xef, 0xbb, 0xbf]);

/**
 * Splits at line feeds only: JSON strings and texts may contain other line separators of Unicode. Removes a carriage
 * return before the line feed and a byte order mark at the start.
 */
export async function* linesOf(source: AsyncIterable<Buffer>): AsyncGenerator<Line> {
  let number = 1;
  let pieces: Buffer[] = [];
  let length = 0;
  const take = (piece: Buffer) => {
    length += piece.length;
    // A line that is too long is counted, but not kept.
    if (length > MAX_LINE_BYTES) pieces = [];
    else pieces.push(piece);
  };
  const line = (): Line => {
    let bytes = Buffer.concat(pieces);
    const current = number++;
    const isTooLong = length > MAX_LINE_BYTES;
    pieces = [];
    length = 0;
    if (isTooLong) return { number: current, problem: `longer than ${MAX_LINE_BYTES} bytes` };
    if (bytes.at(-1) === CARRIAGE_RETURN) bytes = bytes.subarray(0, -1);
    if (current === 1 && bytes.indexOf(BYTE_ORDER_MARK) === 0) bytes = bytes.subarray(BYTE_ORDER_MARK.length);
    return { number: current, bytes };
  };
  for await (const chunk of source) {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      take(chunk.subarray(start, end));
      yield line();
      start = end + 1;
    }
    if (start < chunk.length) take(chunk.subarray(start));
  }
  // What follows the last line feed, unless it is empty.
  if (length > 0) yield line();
}

/** How to find the text of a line. */
export interface TextFormat {
  format: "lines" | "jsonl";
  /** With `"jsonl"`: the field that contains the text. */
  field: string;
}

/** The text of a line and, with JSONL, its `id`; or why there is none; or `undefined` for a blank line, which is skipped. */
export type LineText = { text: string; id?: unknown } | { problem: string } | undefined;

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export function textOf(bytes: Buffer, { format, field }: TextFormat): LineText {
  let content: string;
  try {
    content = utf8.decode(bytes);
  } catch {
    return { problem: "not UTF-8" };
  }
  if (format === "lines") return { text: content };
  if (content.trim() === "") return undefined;
  let record: unknown;
  try {
    record = JSON.parse(content);
  } catch (error) {
    return { problem: `not JSON: ${(error as Error).message}` };
  }
  if (typeof record !== "object" || record === null || Array.isArray(record)) return { problem: "not a JSON object" };
  const { [field]: text, id } = record as Record<string, unknown>;
  if (typeof text === "string") return id === undefined ? { text } : { text, id };
  const found = text === undefined ? "is missing" : `is ${text === null ? "null" : `a ${typeof text}`}, not a string`;
  return { problem: `the field ${JSON.stringify(field)} ${found}` };
}
