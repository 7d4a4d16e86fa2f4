import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { EmbedderError } from "./errors.js";

/** Most bytes of a settings file, as in `src/file.rs`. */
export const MOST_SETTINGS = 16 * 2 ** 20;
/** Most bytes of a `tokenizer.json`. */
export const MOST_TOKENIZER = 256 * 2 ** 20;
/** Most bytes of an ONNX graph: a limit of the format. */
export const MOST_GRAPH = 2 ** 31 - 1;

// Without them, opening a named pipe waits for its writer. Windows has neither.
const { O_RDONLY, O_NONBLOCK = 0, O_NOCTTY = 0 } = constants;

/**
 * Opens a regular file, or a link to one: reading a pipe may block, and a device never ends.
 *
 * @throws EmbedderError `MODEL_INVALID` if it is no regular file or cannot be opened, `MODEL_NOT_FOUND` if it does not exist.
 */
export function openRegularFile(file: string): number {
  let descriptor: number;
  try {
    descriptor = openSync(file, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") {
      throw new EmbedderError("MODEL_NOT_FOUND", `${file} does not exist`, { cause });
    }
    throw unreadable(file, message, cause);
  }
  const stat = fstatSync(descriptor);
  if (stat.isFile()) return descriptor;
  closeSync(descriptor);
  const found = stat.isDirectory() ? "a folder" : "a pipe, a socket or a device";
  throw unreadable(file, `expected a regular file, found ${found}`);
}

/**
 * The contents of a regular file.
 *
 * @throws EmbedderError as `openRegularFile`, and `MODEL_INVALID` if it is larger than `mostBytes`.
 */
export function readRegularFile(file: string, mostBytes: number): Buffer {
  const descriptor = openRegularFile(file);
  try {
    const { size } = fstatSync(descriptor);
    if (size > mostBytes) throw unreadable(file, `expected at most ${mostBytes} bytes, found ${size}`);
    // One more byte, to notice a file that grows while it is read.
    const bytes = Buffer.allocUnsafe(size + 1);
    let length = 0;
    while (length < bytes.length) {
      const read = readSync(descriptor, bytes, length, bytes.length - length, null);
      if (read === 0) break;
      length += read;
    }
    if (length > size) throw unreadable(file, "it became longer while it was read");
    return bytes.subarray(0, length);
  } finally {
    closeSync(descriptor);
  }
}

function unreadable(file: string, problem: string, cause?: unknown): EmbedderError {
  return new EmbedderError("MODEL_INVALID", `${file}: cannot be read: ${problem}`, { cause });
}

/** Whether a name with `/` is a path inside its folder on every system: relative, without `..` and special characters. */
export function isPlainPath(name: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: such names are what this refuses.
  if (name.length > 500 || /[\\:\u0000-\u001f\u007f-\u009f]/.test(name)) return false;
  return name.split("/").every((segment) => segment !== "" && segment !== "." && segment !== "..");
}
