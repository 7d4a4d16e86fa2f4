/** The folder that an index lies in, and the right to change it. */

import { existsSync, lstatSync, mkdirSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DatabaseSync } from "@photostructure/sqlite";

const FOLDER = ".code-search";
const FILE = "search.db";
/** Locked by the process that is at work on the index. */
const LOCK_FILE = "lock.db";
/** What SQLite puts beside a database. */
const SQLITE_FILES = ["", "-wal", "-shm", "-journal"];
const LOCK_RETRY_MS = 100;

/** @param {string} dir */
export function indexFile(dir) {
  return path.join(dir, FOLDER, FILE);
}
/**
 * The right to change the index of a folder, which one process has at a time: two that embed the same files would take
 * twice as long as one. Waits for it. It is a lock on a file, so that it ends with its process, however that ends.
 *
 * @param {string} dir
 * @param {object} [options]
 * @param {AbortSignal} [options.signal]
 * @param {() => void} [options.onWait] called once if another process has it
 * @returns {Promise<{ release(): void }>}
 */
export async function lockIndex(dir, { signal, onWait = () => {} } = {}) {
  const file = path.join(makeIndexFolder(dir), LOCK_FILE);
  const lock = new DatabaseSync(file, { timeout: 0 });
  try {
    for (let isFirst = true; ; isFirst = false) {
      signal?.throwIfAborted();
      try {
        lock.exec("BEGIN EXCLUSIVE");
        return { release: () => lock.close() };
      } catch (error) {
        if (!/locked/.test(String(error))) throw error;
      }
      if (isFirst) onWait();
      await sleep(LOCK_RETRY_MS);
    }
  } catch (error) {
    lock.close();
    throw error;
  }
}

/**
 * Makes the folder that an index lies in, where there is none.
 *
 * @param {string} dir
 * @throws if it, or a file of the index, is a symbolic link: a folder from elsewhere does not decide which files are written
 */
export function makeIndexFolder(dir) {
  const folder = path.join(dir, FOLDER);
  const files = [FILE, LOCK_FILE].flatMap((name) => SQLITE_FILES.map((suffix) => path.join(folder, name + suffix)));
  for (const file of [folder, ...files]) {
    if (lstatSync(file, { throwIfNoEntry: false })?.isSymbolicLink()) {
      throw Object.assign(new Error(`${file} is a symbolic link, and an index is not written elsewhere: remove it`), {
        code: "INDEX_IS_LINK",
      });
    }
  }
  if (!existsSync(folder)) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, ".gitignore"), "*\n");
  }
  return folder;
}
