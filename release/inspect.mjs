/** What must hold of the files of a package before anybody gets it. */

import { readdirSync, readFileSync, statSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { ROOT, run } from "../scripts/setup.mjs";
import { PLATFORMS } from "./platforms.mjs";

/** Libraries of the system itself. */
const OF_LINUX = /^(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so\.\d|ld-linux-.*)$/;
/** Libraries of NVIDIA's driver and of CUDA 13, which users of the CUDA package install, and what MLX has beside it. */
const OF_CUDA = /^lib(cuda|cublasLt|cudnn|cufft|nvrtc|nccl)\.so\.\d+$/;
const OF_MLX = /^lib(mlx\.so|(lapack|blas|gfortran|quadmath)-[\da-f]+\.so\.[\d.]+)$/;
const OF_MACOS = /^(\/usr\/lib\/|\/System\/)/;

/**
 * That libraries need nothing but the system and no newer one than is promised, and know nothing of the machine that
 * built the addon. On Windows only the last is checked: there are no search paths in its libraries.
 *
 * @param {string} platform
 * @param {string} folder
 * @param {string[]} names of libraries in it
 */
export async function checkBinaries(platform, folder, names) {
  const problems = [];
  for (const name of names) {
    const file = path.join(folder, name);
    if (platform.startsWith("linux")) problems.push(...(await linuxProblems(file, PLATFORMS[platform])));
    if (platform.startsWith("darwin")) problems.push(...(await macosProblems(file)));
    // ONNX Runtime's library has paths of the machine that built that, and MLX compiles its own folder in.
    if (!name.endsWith(".node") || platform.startsWith("darwin") || PLATFORMS[platform].mlx) continue;
    const bytes = readFileSync(file);
    for (const place of [path.resolve(ROOT), os.homedir()]) {
      if (place.length > 1 && bytes.includes(place + path.sep)) problems.push(`${name} contains the path ${place}`);
    }
  }
  if (problems.length > 0) throw new Error(problems.join("\n"));
}

async function linuxProblems(file, { glibc, mlx }) {
  const name = path.basename(file);
  const isExpected = (needed) => OF_LINUX.test(needed) || (mlx && (OF_MLX.test(needed) || OF_CUDA.test(needed)));
  const dynamic = await run("readelf", ["--dynamic", "--wide", file]);
  const tags = (tag) => [...dynamic.matchAll(new RegExp(`\\(${tag}\\).*\\[(.*)\\]`, "g"))].map((match) => match[1]);
  const symbols = await run("objdump", ["--dynamic-syms", file]);
  const versions = [...symbols.matchAll(/\(?GLIBC_([\d.]+)\)?/g)].map((match) => match[1]);
  return [
    ...tags("NEEDED").flatMap((needed) => (isExpected(needed) ? [] : [`${name} needs ${needed}`])),
    ...[...tags("RPATH"), ...tags("RUNPATH")]
      .flatMap((places) => places.split(":"))
      .flatMap((place) => (/^\$ORIGIN(\/|$)/.test(place) ? [] : [`${name} looks for libraries in ${place}`])),
    ...[...new Set(versions)].flatMap((version) =>
      isNewer(version, glibc) ? [`${name} needs glibc ${version}: expected at most ${glibc}`] : [],
    ),
  ];
}

async function macosProblems(file) {
  const name = path.basename(file);
  const needed = [...(await run("otool", ["-L", file])).matchAll(/^\t(\S+)/gm)].map((match) => match[1]);
  const places = [...(await run("otool", ["-l", file])).matchAll(/LC_RPATH.*?path (\S+)/gs)].map((match) => match[1]);
  return [
    // The first that a library names is itself.
    ...needed.slice(1).flatMap((library) => (OF_MACOS.test(library) ? [] : [`${name} needs ${library}`])),
    ...places.flatMap((place) => (place.startsWith("@loader_path") ? [] : [`${name} looks for libraries in ${place}`])),
  ];
}

function isNewer(version, limit) {
  const [a, b] = [version, limit].map((text) => text.split(".").map(Number));
  return a[0] !== b[0] ? a[0] > b[0] : (a[1] ?? 0) > (b[1] ?? 0);
}

/** @param {number} megabytes the most that the files of the folder may take */
export function checkSize(name, folder, megabytes) {
  const found = sizeOf(folder) / 1e6;
  if (found > megabytes) throw new Error(`${name}: expected at most ${megabytes} MB, found ${found.toFixed(1)} MB`);
}

/** Bytes of all files of a folder. */
export function sizeOf(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true }).reduce(
    (sum, entry) => sum + (entry.isFile() ? statSync(path.join(entry.parentPath, entry.name)).size : 0),
    0,
  );
}
