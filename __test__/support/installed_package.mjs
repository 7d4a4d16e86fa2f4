/** The package as its users have it: packed by npm and installed in a folder of its own. */

import { execFileSync } from "node:child_process";
import { constants, copyFileSync, cpSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { entryPoint, libraryName, MANIFEST, PLATFORMS, packageName, thisPlatform } from "../../release/platforms.mjs";
import { ROOT, temporaryFolder } from "./models.mjs";

export const NAME = "semantic-search-native";
const ADDON = readdirSync(ROOT).find((name) => /^semantic-search-native\..*\.node$/.test(name));
const PLATFORM = thisPlatform();
/** The package of this platform, which npm installs beside it. */
export const PLATFORM_PACKAGE = packageName(PLATFORM);
/** What it needs at run time; `onnxruntime-node` is for the fallback. */
const DEPENDENCIES = ["onnxruntime-node", "onnxruntime-common", "@huggingface/tokenizers", "undici", "commander"];

let packed;

/** The contents of the package's tarball, unpacked. */
function packedFiles() {
  if (packed) return packed;
  const folder = temporaryFolder();
  const npm = process.platform === "win32" ? "npm.cmd" : "npm";
  const args = ["pack", "--ignore-scripts", "--json", `--pack-destination=${folder}`];
  const options = {
    cwd: ROOT,
    encoding: "utf8",
    shell: process.platform === "win32",
    stdio: ["ignore", "pipe", "pipe"],
  };
  const [{ filename }] = JSON.parse(execFileSync(npm, args, options));
  execFileSync("tar", ["-xzf", filename], { cwd: folder });
  packed = path.join(folder, "package");
  return packed;
}

/**
 * A folder with the package installed in `node_modules`; its dependencies are links.
 *
 * @param {{ addon?: "built" | "broken" | "hidden", dependencies?: string[] }} [parts] `addon`: what stands in the place
 * of the native file in the package of this platform
 */
export function installedPackage({ addon = "built", dependencies = DEPENDENCIES } = {}) {
  const user = temporaryFolder();
  const modules = path.join(user, "node_modules");
  const target = path.join(modules, NAME);
  cpSync(packedFiles(), target, { recursive: true });
  if (addon !== "hidden") installPlatformPackage(path.join(modules, PLATFORM_PACKAGE), addon);
  for (const name of dependencies) {
    mkdirSync(path.dirname(path.join(modules, name)), { recursive: true });
    symlinkSync(path.join(ROOT, "node_modules", name), path.join(modules, name), "junction");
  }
  return user;
}

/** The addon that `installedPackage` has installed in a user's folder. */
export function builtAddon(user) {
  return path.join(user, "node_modules", PLATFORM_PACKAGE, ADDON);
}

/** As a release has it, with the addon of the clone, which may be another variant and need a newer glibc. */
function installPlatformPackage(folder, addon) {
  mkdirSync(folder);
  const manifest = { name: PLATFORM_PACKAGE, version: MANIFEST.version, main: "index.js" };
  writeFileSync(path.join(folder, "package.json"), JSON.stringify(manifest));
  writeFileSync(path.join(folder, "index.js"), entryPoint(PLATFORM, ADDON));
  if (addon === "built") copyFileSync(path.join(ROOT, ADDON), path.join(folder, ADDON));
  else writeFileSync(path.join(folder, ADDON), "this is not a shared library\n");
  const library = path.join(ROOT, "node_modules/onnxruntime-node/bin/napi-v6", PLATFORMS[PLATFORM].library);
  copyFileSync(library, path.join(folder, libraryName(PLATFORM)), constants.COPYFILE_FICLONE);
}
