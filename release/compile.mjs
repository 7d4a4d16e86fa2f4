/** Compiles the addon for a release, and edits what linkers read in libraries. */

import { readdirSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { ROOT, run } from "../scripts/setup.mjs";
import { PLATFORMS } from "./platforms.mjs";

/** Not `target/`, whose files were built with other flags. */
const TARGET = path.join(ROOT, "target", "release-build");
/** The oldest version of macOS whose Metal has what MLX uses. */
const MACOS = "14.0";

/**
 * @param {string} platform
 * @param {{ [name: string]: string | undefined }} environment with the release's tools
 * @param {{ config: string }} [variant] of MLX
 * @returns {Promise<{ file: string, metal?: string }>} the addon, and the Metal kernels that belong beside it
 */
export async function compileAddon(platform, environment, variant) {
  const { target, glibc } = PLATFORMS[platform];
  const home = process.env.CARGO_HOME ?? path.join(os.homedir(), ".cargo");
  const flags = [`--remap-path-prefix=${home}=cargo`, `--remap-path-prefix=${path.resolve(ROOT)}=.`];
  const env = { ...environment, CARGO_ENCODED_RUSTFLAGS: flags.join("\x1f"), MACOSX_DEPLOYMENT_TARGET: MACOS };
  // zig brings glibc's symbols and a C++ library of its own, so MLX's wheel, which uses the system's, cannot be linked by it.
  const [command, triple] = glibc && !variant ? ["zigbuild", `${target}.${glibc}`] : ["build", target];
  const mlx = variant ? ["--features", "mlx", "--config", variant.config] : [];
  const folder = path.join(TARGET, variant ? platform : "");
  const args = ["--release", "--locked", "--lib", "--target", triple, "--target-dir", folder, ...mlx];
  await run("cargo", [command, ...args], env);
  const name = { darwin: "lib*.dylib", linux: "lib*.so", win32: "*.dll" }[platform.split("-")[0]];
  const file = path.join(folder, target, "release", name.replace("*", "semantic_search_native"));
  if (!platform.startsWith("darwin")) return { file };
  await setLinkerName(platform, file, env);
  return { file, metal: metalKernels(folder) };
}

/** The newest `mlx.metallib` that mlx-sys has compiled. */
function metalKernels(folder) {
  const below = readdirSync(folder, { recursive: true }).map(String);
  const found = below.filter((name) => path.basename(name) === "mlx.metallib");
  if (found.length === 0) throw new Error(`${folder} contains no mlx.metallib: expected mlx-sys to compile one`);
  return path.join(folder, found.at(-1));
}

/** Gives a library its file's name. Linux's linker goes by this one; Windows' by the file's, and has nothing to edit. */
export async function setLinkerName(platform, file, env) {
  const name = path.basename(file);
  if (platform.startsWith("linux")) await run("patchelf", ["--set-soname", name, file], env);
  if (platform.startsWith("darwin")) {
    await run("install_name_tool", ["-id", `@rpath/${name}`, file]);
    // Editing it has made its signature invalid, without which Apple silicon loads nothing.
    await run("codesign", ["--force", "--sign", "-", file]);
  }
}

/** Where a library of Linux looks for others. */
export async function setSearchPath(file, places, env) {
  await run("patchelf", ["--set-rpath", places, file], env);
}
