/**
 * The text files of a folder: without what .gitignore and .codesearchignore leave out, without binary, huge and
 * machine-written files.
 */

import { createHash } from "node:crypto";
import { constants, existsSync } from "node:fs";
import { open, readdir } from "node:fs/promises";
import * as path from "node:path";
import ignore from "ignore";

/** Nobody's own source code. */
export const SKIPPED_FOLDERS = [".git", ".hg", ".svn", ".code-search", "node_modules"];
const LOCK_FILE = /(^|[-.])lock(\.json|\.yaml|b)?$|^go\.sum$/;
const MAX_BYTES = 512 * 1024;
/** Longer lines are written by machines: minified code, data. */
const MAX_LINE_CHARACTERS = 5000;

/** Both in one syntax. The second may take back what the first one beside it leaves out. */
const IGNORE_FILES = [".gitignore", ".codesearchignore"];

/**
 * What the ignore files of one folder say about paths relative to it.
 *
 * @typedef {{ folder: string, rules: import("ignore").Ignore }} IgnoreFile
 */

/**
 * Called for each folder below the root that cannot be read, with its path relative to it: folders go while others are
 * read.
 *
 * @typedef {(folder: string, error: NodeJS.ErrnoException) => void} Skipped
 */

/**
 * Paths relative to `root`, with `/`, in order. Symbolic links are not followed.
 *
 * @param {string} root
 * @param {Skipped} [skipped]
 * @param {Scope} [scope] everything by default
 */
export async function filesBelow(root, skipped, scope) {
  const files = [];
  for await (const file of walkBelow(root, skipped, scope)) files.push(file);
  return files.sort();
}

/** The part of a folder that is looked at: some files and folders in it, and what is in these. */
export class Scope {
  #above = new Set([""]);

  /** @param {ReadonlySet<string>} paths relative to the folder, with `/` */
  constructor(paths) {
    this.paths = paths;
    for (const path of paths) for (const folder of foldersOf(path)) this.#above.add(folder);
  }

  /**
   * Whether a path is in it.
   *
   * @param {string} path
   */
  has(path) {
    return this.paths.has(path) || foldersOf(path).some((folder) => this.paths.has(folder));
  }

  /**
   * Whether a folder has to be looked into.
   *
   * @param {string} folder
   */
  leadsTo(folder) {
    return this.#above.has(folder) || this.has(folder);
  }

  /** Whether it says which files are looked at elsewhere. */
  get hasIgnoreFiles() {
    return [...this.paths].some((path) => IGNORE_FILES.includes(path.slice(path.lastIndexOf("/") + 1)));
  }
}

/**
 * The folders that a path is in, the innermost first.
 *
 * @param {string} path
 */
function foldersOf(path) {
  const folders = [];
  for (let end = path.lastIndexOf("/"); end > 0; end = path.lastIndexOf("/", end - 1)) folders.push(path.slice(0, end));
  return folders;
}

/**
 * The same in the order in which folders are read.
 *
 * @param {string} root
 * @param {Skipped} [skipped]
 * @param {Scope} [scope]
 * @returns {AsyncGenerator<string>}
 */
export async function* walkBelow(root, skipped = () => {}, scope) {
  const absolute = path.resolve(root);
  const relative = (/** @type {string} */ full) => path.relative(absolute, full).split(path.sep).join("/");
  const entries = await readdir(absolute, { withFileTypes: true });
  const isWanted = (/** @type {string} */ full, /** @type {boolean} */ isFolder) =>
    !scope || (isFolder ? scope.leadsTo(relative(full)) : scope.has(relative(full)));
  const files = walk(absolute, entries, await ignoreFilesAbove(absolute), {
    skipped: (folder, error) => skipped(relative(folder), error),
    isWanted,
  });
  for await (const file of files) yield relative(file);
}

/**
 * @param {string} folder
 * @param {import("node:fs").Dirent[]} entries what is in it
 * @param {IgnoreFile[]} above
 * @param {{ skipped: Skipped, isWanted: (full: string, isFolder: boolean) => boolean }} options
 * @returns {AsyncGenerator<string>}
 */
async function* walk(folder, entries, above, options) {
  const names = new Set(entries.map(({ name }) => name));
  const here = IGNORE_FILES.filter((name) => names.has(name));
  const ignoreFiles = [...above, ...(await ignoreFileOf(folder, here))];
  for (const entry of entries) {
    const full = path.join(folder, entry.name);
    if (!options.isWanted(full, entry.isDirectory())) continue;
    if (entry.isDirectory()) {
      if (SKIPPED_FOLDERS.includes(entry.name) || isIgnored(full, true, ignoreFiles)) continue;
      let inside;
      try {
        inside = await readdir(full, { withFileTypes: true });
      } catch (error) {
        options.skipped(full, /** @type {NodeJS.ErrnoException} */ (error));
        continue;
      }
      yield* walk(full, inside, ignoreFiles, options);
    } else if (entry.isFile() && !LOCK_FILE.test(entry.name) && !isIgnored(full, false, ignoreFiles)) {
      yield full;
    }
  }
}

/**
 * The file that lies deepest and has something to say decides, as in git.
 *
 * @param {string} full
 * @param {boolean} isFolder
 * @param {IgnoreFile[]} ignoreFiles from the outermost folder to the innermost
 */
function isIgnored(full, isFolder, ignoreFiles) {
  for (const { folder, rules } of ignoreFiles.toReversed()) {
    const relative = path.relative(folder, full).split(path.sep).join("/");
    const { ignored, unignored } = rules.test(isFolder ? `${relative}/` : relative);
    if (ignored || unignored) return ignored;
  }
  return false;
}

/**
 * @param {string} folder
 * @param {string[]} names of the ignore files to read in it
 * @returns {Promise<IgnoreFile[]>} one or none
 */
async function ignoreFileOf(folder, names = IGNORE_FILES) {
  const read = (/** @type {string} */ name) => readRegularFile(path.join(folder, name)).catch(() => undefined);
  const contents = (await Promise.all(names.map(read))).filter((bytes) => bytes !== undefined);
  return contents.length > 0 ? [{ folder, rules: ignore().add(contents.join("\n")) }] : [];
}

/**
 * The ignore files between a repository's root and a folder inside of it. They do not count if they leave out the folder
 * itself: who names it wants it.
 *
 * @param {string} folder absolute
 * @returns {Promise<IgnoreFile[]>}
 */
async function ignoreFilesAbove(folder) {
  const found = (await Promise.all(foldersAbove(folder).map((parent) => ignoreFileOf(parent)))).flat();
  return isIgnored(folder, true, found) ? [] : found;
}

/**
 * The folders from a repository's root down to the one that a folder lies in; none for the root itself, and outside of
 * repositories.
 *
 * @param {string} folder absolute
 */
export function foldersAbove(folder) {
  const found = [];
  for (let inside = folder; !existsSync(path.join(inside, ".git")); inside = path.dirname(inside)) {
    const parent = path.dirname(inside);
    if (parent === inside) return [];
    found.unshift(parent);
  }
  return found;
}

/**
 * A file's text and the SHA-256 of its bytes.
 *
 * @param {string} file
 * @returns {Promise<{ text: string, hash: string } | undefined>} `undefined` for what is not to be indexed, or cannot be
 */
export async function readSource(file) {
  let bytes;
  try {
    bytes = await readRegularFile(file);
  } catch {
    return undefined;
  }
  if (bytes.includes(0)) return undefined;
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return undefined;
  }
  if (text.split("\n").some((line) => line.length > MAX_LINE_CHARACTERS)) return undefined;
  return { text, hash: createHash("sha256").update(bytes).digest("hex") };
}

/**
 * The bytes of a file. A named pipe would have its reader wait for a writer, a device never ends, and a link leads out of
 * the folder.
 *
 * @param {string} file
 * @param {{ followLinks?: boolean }} [options]
 * @returns {Promise<Buffer>} rejected for what is no regular file, or is huge
 */
export async function readRegularFile(file, { followLinks = false } = {}) {
  // Windows has neither flag.
  const flags = (constants.O_NONBLOCK ?? 0) | (followLinks ? 0 : (constants.O_NOFOLLOW ?? 0));
  const handle = await open(file, constants.O_RDONLY | flags);
  try {
    const status = await handle.stat();
    if (!status.isFile()) throw new Error(`${file} is no regular file`);
    // One more than it has: it may grow while it is read.
    const bytes = Buffer.alloc(Math.min(status.size, MAX_BYTES) + 1);
    let length = 0;
    for (let read = 1; read > 0; length += read) {
      read = (await handle.read(bytes, length, bytes.length - length)).bytesRead;
    }
    if (length === bytes.length) throw new Error(`${file} is huge, or still growing`);
    return bytes.subarray(0, length);
  } finally {
    await handle.close();
  }
}
