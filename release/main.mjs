/**
 * `npm run release -- <step>`:
 *
 *   build [platform]   compiles this platform's package, or that of another, into `target/npm/<platform>/`, and checks it
 *   pack               packs the main package, those that depend on it, and all platform packages that were built
 *   try                publishes the archives in a registry on this machine, installs from there and uses what it got
 *   dry-run            these three
 *   compare            sizes and times of installation beside other packages, from such a registry
 *   publish            publishes all packages; only if all platforms were built, from a clean checkout of the version's tag
 */

import { readdirSync } from "node:fs";
import * as path from "node:path";
import { installPackages, installStarterModel, reportFailure, run, runNpm } from "../scripts/setup.mjs";
import { addresses } from "./addresses.mjs";
import { buildPlatform } from "./build.mjs";
import { compareInstallation } from "./compare.mjs";
import { sizeOf } from "./inspect.mjs";
import { builtPlatforms, pack } from "./pack.mjs";
import { MANIFEST, NAMED, PACKAGES, PLATFORMS, thisPlatform } from "./platforms.mjs";
import { tryRelease } from "./trial.mjs";

const STEPS = {
  build: async (platform = thisPlatform()) => {
    const folder = await buildPlatform(platform);
    console.log(`${path.relative("", folder)}: ${(sizeOf(folder) / 1e6).toFixed(1)} MB`);
  },
  pack: async () => {
    for (const archive of await pack()) console.log(path.relative("", archive));
  },
  try: async () => {
    await installStarterModel();
    for (const line of await tryRelease(archives())) console.log(line);
  },
  "dry-run": async () => {
    for (const step of ["build", "pack", "try"]) await STEPS[step]();
  },
  compare: async () => {
    for (const line of await compareInstallation(archives())) console.log(line);
  },
  publish,
};

/** What `pack` has left, each after those that it depends on. */
function archives() {
  const archiveOf = (name) => `${name}-${MANIFEST.version}.tgz`;
  const names = readdirSync(PACKAGES).filter((name) => name.endsWith(archiveOf("")));
  const last = NAMED.map(archiveOf);
  const missing = last.filter((name) => !names.includes(name));
  if (missing.length > 0) throw new Error(`${PACKAGES} contains no ${missing}: run npm run release -- pack first`);
  return [...names.filter((name) => !last.includes(name)), ...last].map((name) => path.join(PACKAGES, name));
}

async function publish() {
  const missing = Object.keys(PLATFORMS).filter((platform) => !builtPlatforms().includes(platform));
  if (missing.length > 0) throw new Error(`nothing was published: not built are ${missing.join(", ")}`);
  const changes = await run("git", ["status", "--porcelain"]);
  if (changes !== "") throw new Error(`nothing was published: expected a clean checkout, found\n${changes}`);
  const tags = (await run("git", ["tag", "--points-at", "HEAD"])).split("\n");
  const tag = `v${MANIFEST.version}`;
  if (!tags.includes(tag)) throw new Error(`nothing was published: expected a checkout of the tag ${tag}`);
  if (!addresses().repository) {
    throw new Error("nothing was published: expected GITHUB_SERVER_URL and GITHUB_REPOSITORY, as in the workflow");
  }
  for (const archive of archives()) await runNpm(["publish", archive, "--access=public", "--provenance"]);
}

async function release([step, ...args]) {
  if (!Object.hasOwn(STEPS, step ?? "")) {
    throw new Error(`expected one of ${Object.keys(STEPS).join(", ")}, found ${step ?? "nothing"}`);
  }
  await installPackages();
  await STEPS[step](...args);
}

release(process.argv.slice(2)).catch((error) => {
  reportFailure(error);
  process.exitCode = 1;
});
