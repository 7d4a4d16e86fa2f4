/** What a release consists of: the platforms, what their packages contain, and how large they may be. */

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { ROOT } from "../scripts/setup.mjs";

/**
 * By the names of napi-rs, which makes the package's name and `package.json` of them; `napi.targets` in the main
 * `package.json` lists the same platforms as Rust targets.
 *
 * - `library`: ONNX Runtime below `bin/napi-v6/` of onnxruntime-node
 * - `glibc`: the newest version of glibc that may be needed, which is what ONNX Runtime's library needs
 * - `megabytes`: the most that the package may take once unpacked
 * - `mlx`: a package that users add to that of their platform, with this variant of MLX; it depends on the other for ONNX
 *   Runtime's library
 */
export const PLATFORMS = {
  "darwin-arm64": { target: "aarch64-apple-darwin", library: "darwin/arm64/libonnxruntime.1.dylib", megabytes: 180 },
  "linux-x64-gnu": {
    target: "x86_64-unknown-linux-gnu",
    library: "linux/x64/libonnxruntime.so.1",
    glibc: "2.28",
    megabytes: 54,
  },
  "linux-x64-cuda": { target: "x86_64-unknown-linux-gnu", mlx: "cuda", glibc: "2.35", megabytes: 200 },
  "linux-arm64-gnu": {
    target: "aarch64-unknown-linux-gnu",
    library: "linux/arm64/libonnxruntime.so.1",
    glibc: "2.28",
    megabytes: 34,
  },
  "win32-x64-msvc": { target: "x86_64-pc-windows-msvc", library: "win32/x64/onnxruntime.dll", megabytes: 38 },
  "win32-arm64-msvc": { target: "aarch64-pc-windows-msvc", library: "win32/arm64/onnxruntime.dll", megabytes: 38 },
};

/** The most that the main package may take once unpacked. */
export const MAIN_MEGABYTES = 1;

/** The folders of packages that depend on the main one and are published with it. */
export const DEPENDENTS = ["packages/code-search"];

/** Where packages are put together; git-ignored. */
export const PACKAGES = path.join(ROOT, "target", "npm");

export const MANIFEST = readManifest(".");

/** The platforms whose packages `npm install` chooses from. */
export const CHOSEN = Object.keys(PLATFORMS).filter((platform) => !PLATFORMS[platform].mlx);

export const packageName = (platform) => `${MANIFEST.name}-${platform}`;

/** The packages that users name, each after those that it depends on. */
export const NAMED = [MANIFEST.name, ...DEPENDENTS.map((folder) => readManifest(folder).name)];

/** @param {string} folder of a package, relative to the repository */
export function readManifest(folder) {
  return JSON.parse(readFileSync(path.join(ROOT, folder, "package.json"), "utf8"));
}

/** The platform that this runs on. */
export function thisPlatform() {
  const abi = { linux: "-gnu", win32: "-msvc" }[process.platform] ?? "";
  return `${process.platform}-${process.arch}${abi}`;
}

/**
 * The file that a platform package is loaded by. It tells `lib/native.ts` where ONNX Runtime's library is, in a way that
 * tools that trace a program's files follow.
 *
 * @param {string} addon name of its file
 */
export function entryPoint(platform, addon) {
  const library = JSON.stringify(libraryName(platform));
  const base = JSON.stringify(`${packageName("linux-x64-gnu")}/package.json`);
  const folder = PLATFORMS[platform].mlx ? `path.dirname(require.resolve(${base}))` : "__dirname";
  return `const path = require("node:path");
const addon = require(${JSON.stringify(`./${addon}`)});
addon.onnxRuntimeLibrary = path.join(${folder}, ${library});
module.exports = addon;
`;
}

/**
 * The name of ONNX Runtime's library in a platform package. Not its own name: under that, the linkers of Linux and Windows
 * would give it to any other onnxruntime-node in the process, of whatever version.
 */
export function libraryName(platform) {
  const [os] = platform.split("-");
  return {
    darwin: "libsemantic-search-onnxruntime.dylib",
    linux: "libsemantic-search-onnxruntime.so",
    win32: "semantic-search-onnxruntime.dll",
  }[os];
}
