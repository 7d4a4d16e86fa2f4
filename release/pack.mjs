/** Packs the main package as it is published: with the platform packages as optional dependencies. */

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { run, runNpm } from "../scripts/setup.mjs";
import { addresses, withAbsoluteLinks } from "./addresses.mjs";
import { checkSize } from "./inspect.mjs";
import { CHOSEN, MAIN_MEGABYTES, MANIFEST, PACKAGES, PLATFORMS, packageName } from "./platforms.mjs";

/** What only a clone uses. */
const OF_THE_CLONE = ["scripts", "devDependencies", "napi", "allowScripts"];

/**
 * Packs the main package and those platform packages that were built into `target/npm/`.
 *
 * @returns {Promise<string[]>} archives, the main package last
 */
export async function pack() {
  mkdirSync(PACKAGES, { recursive: true });
  for (const name of readdirSync(PACKAGES)) {
    if (name.endsWith(".tgz")) rmSync(path.join(PACKAGES, name));
  }
  const archives = [];
  for (const platform of builtPlatforms()) archives.push(await packFolder(path.join(PACKAGES, platform)));
  archives.push(await packMain());
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
  const staging = path.join(PACKAGES, "main");
  rmSync(staging, { recursive: true, force: true });
  mkdirSync(staging);
  // Runs `prepack`, which compiles.
  const raw = await packFolder(".");
  await run("tar", ["-xzf", raw, "-C", staging, "--strip-components=1"]);
  rmSync(raw);
  const platforms = CHOSEN.map((platform) => [packageName(platform), MANIFEST.version]);
  const published = { ...MANIFEST, ...addresses(), optionalDependencies: Object.fromEntries(platforms) };
  for (const key of OF_THE_CLONE) delete published[key];
  writeFileSync(path.join(staging, "package.json"), `${JSON.stringify(published, null, 2)}\n`);
  const readme = path.join(staging, "README.md");
  writeFileSync(readme, withAbsoluteLinks(readFileSync(readme, "utf8"), published));
  const libraries = readdirSync(staging, { recursive: true }).filter((name) => String(name).endsWith(".node"));
  if (libraries.length > 0) throw new Error(`the main package contains ${libraries.join(", ")}: expected no addon`);
  checkSize(MANIFEST.name, staging, MAIN_MEGABYTES);
  return packFolder(staging);
}
