/**
 * Packs the main package as it is published, with the platform packages as optional dependencies, and the packages that
 * depend on it.
 */

import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { installPackages, ROOT, run, runNpm } from "../scripts/setup.mjs";
import { addresses, withAbsoluteLinks } from "./addresses.mjs";
import { checkSize } from "./inspect.mjs";
import {
  CHOSEN,
  DEPENDENTS,
  MAIN_MEGABYTES,
  MANIFEST,
  PACKAGES,
  PLATFORMS,
  packageName,
  readManifest,
} from "./platforms.mjs";

/** What only a clone uses. */
const OF_THE_CLONE = ["scripts", "devDependencies", "napi", "allowScripts"];

/**
 * Packs the main package and those platform packages that were built into `target/npm/`.
 *
 * @returns {Promise<string[]>} archives, each after those that it depends on
 */
export async function pack() {
  mkdirSync(PACKAGES, { recursive: true });
  for (const name of readdirSync(PACKAGES)) {
    if (name.endsWith(".tgz")) rmSync(path.join(PACKAGES, name));
  }
  const archives = [];
  for (const platform of builtPlatforms()) archives.push(await packFolder(path.join(PACKAGES, platform)));
  archives.push(await packMain());
  for (const folder of DEPENDENTS) {
    await installPackages(folder);
    archives.push(await packDependent(folder));
  }
  return archives;
}

/** The platforms whose packages lie in `target/npm/`. */
export function builtPlatforms() {
  return Object.keys(PLATFORMS).filter((platform) => existsSync(path.join(PACKAGES, platform, "package.json")));
}

async function packFolder(folder) {
  const output = await runNpm(["pack", "--silent", `--pack-destination=${PACKAGES}`, folder]);
  return path.join(PACKAGES, output.trim().split("\n").at(-1));
}

async function packMain() {
  const platforms = CHOSEN.map((platform) => [packageName(platform), MANIFEST.version]);
  const staging = await stage(".", { optionalDependencies: Object.fromEntries(platforms) });
  const libraries = readdirSync(staging, { recursive: true }).filter((name) => String(name).endsWith(".node"));
  if (libraries.length > 0) throw new Error(`the main package contains ${libraries.join(", ")}: expected no addon`);
  checkSize(MANIFEST.name, staging, MAIN_MEGABYTES);
  return packFolder(staging);
}

/** @param {string} folder of a package that depends on the main one and has its version */
async function packDependent(folder) {
  const { dependencies } = readManifest(folder);
  const { version } = MANIFEST;
  return packFolder(await stage(folder, { version, dependencies: { ...dependencies, [MANIFEST.name]: version } }));
}

/**
 * What a package's archive will hold, in a folder in `target/npm/`.
 *
 * @param {string} folder of the package
 * @param {object} changes to its manifest
 */
async function stage(folder, changes) {
  const manifest = readManifest(folder);
  const staging = path.join(PACKAGES, folder === "." ? "main" : path.basename(folder));
  rmSync(staging, { recursive: true, force: true });
  mkdirSync(staging);
  // Runs `prepack`.
  const raw = await packFolder(path.join(ROOT, folder));
  await run("tar", ["-xzf", raw, "-C", staging, "--strip-components=1"]);
  rmSync(raw);
  const published = { ...manifest, ...addresses(), ...changes };
  for (const key of OF_THE_CLONE) delete published[key];
  writeFileSync(path.join(staging, "package.json"), `${JSON.stringify(published, null, 2)}\n`);
  cpSync(path.join(ROOT, "LICENSE"), path.join(staging, "LICENSE"));
  const readme = path.join(staging, "README.md");
  writeFileSync(readme, withAbsoluteLinks(readFileSync(readme, "utf8"), published));
  return staging;
}
