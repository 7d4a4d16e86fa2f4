/** Folders and places in files, as they are named in arguments. */

import { existsSync, statSync } from "node:fs";
import * as path from "node:path";
import { Failure, usage } from "./failure.mjs";

/**
 * @param {string} dir
 * @returns {string} the folder, absolute
 */
export function existingFolder(dir) {
  if (!statSync(dir, { throwIfNoEntry: false })?.isDirectory()) throw new Failure("ENOTDIR", `${dir} is not a folder`);
  return path.resolve(dir);
}

/**
 * @param {string} folder
 * @param {string} full
 */
export function isInside(folder, full) {
  const [first] = path.relative(folder, full).split(path.sep);
  return first !== "" && first !== ".." && !path.isAbsolute(path.relative(folder, full));
}

/**
 * A file of a folder by its name, which may be relative to the folder, as in a result, or to where the user is.
 *
 * @param {string} folder absolute
 * @param {string} file
 * @returns {string} relative to the folder, with `/`
 */
export function fileIn(folder, file) {
  const places = [path.resolve(folder, file), path.resolve(file)].filter((full) => isInside(folder, full));
  const [full] = places;
  if (full === undefined) throw new Failure("OUTSIDE", `${file} is not in the folder ${folder}`);
  const found = places.find((place) => existsSync(place)) ?? full;
  return path.relative(folder, found).split(path.sep).join("/");
}

/**
 * Parses `file:line`, also with a column behind it, as other programs print it.
 *
 * @param {string} text
 */
export function placeOf(text) {
  const [, file, line] = /^(.+?):([1-9]\d{0,8})(?::\d+)?$/.exec(text) ?? [];
  if (file === undefined)
    throw usage(`expected a file and a line, such as "src/main.js:12", found ${JSON.stringify(text)}`);
  return { file, line: Number(line) };
}
