/** The text files of a folder: without what .gitignore leaves out, without binary, huge and machine-written files. */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import * as path from "node:path";
import ignore from "ignore";

/** Nobody's own source code. */
const SKIPPED_FOLDERS = new Set([".git", ".hg", ".svn", ".code-search", "node_modules"]);
const LOCK_FILE = /(^|[-.])lock(\.json|\.yaml|b)?$|^go\.sum$/;
const MAX_BYTES = 512 * 1024;
/** Longer lines are written by machines: minified code, data. */
const MAX_LINE_CHARACTERS = 5000;

/**
 * What one .gitignore says about paths relative to the folder that it lies in.
 *
 * @typedef {{ folder: string, rules: import("ignore").Ignore }} IgnoreFile
 */

/**
 * Paths relative to `root`, with `/`, in order. Symbolic links are not followed.
 *
 * @param {string} root
 * @returns {Promise<string[]>}
 */
export async function filesBelow(root) {
  const absolute = path.resolve(root);
  const files = [];
  for await (const file of walk(absolute, await ignoreFilesAbove(absolute))) files.push(file);
  return files.map((file) => path.relative(absolute, file).split(path.sep).join("/")).sort();
}

/**
 * @param {string} folder
 * @param {IgnoreFile[]} above
 * @returns {AsyncGenerator<string>}
 */
async function* walk(folder, above) {
  const ignoreFiles = [...above, ...(await ignoreFileOf(folder))];
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const full = path.join(folder, entry.name);
    if (entry.isDirectory()) {
      if (SKIPPED_FOLDERS.has(entry.name) || isIgnored(full, true, ignoreFiles)) continue;
      yield* walk(full, ignoreFiles);
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
 * @returns {Promise<IgnoreFile[]>} one or none
 */
async function ignoreFileOf(folder) {
  try {
    return [{ folder, rules: ignore().add(await readFile(path.join(folder, ".gitignore"), "utf8")) }];
  } catch {
    return [];
  }
}

/**
 * The .gitignore files between a repository's root and a folder inside of it. They do not count if they leave out the
 * folder itself: who names it wants it.
 *
 * @param {string} folder absolute
 * @returns {Promise<IgnoreFile[]>}
 */
async function ignoreFilesAbove(folder) {
  const found = [];
  for (let inside = folder; !existsSync(path.join(inside, ".git")); inside = path.dirname(inside)) {
    const parent = path.dirname(inside);
    if (parent === inside) return [];
    found.unshift(...(await ignoreFileOf(parent)));
  }
  return isIgnored(folder, true, found) ? [] : found;
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
    if ((await stat(file)).size > MAX_BYTES) return undefined;
    bytes = await readFile(file);
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
