/** The licenses of what a package contains, as the authors wrote them. */

import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { run } from "../scripts/setup.mjs";
import { cacheFolder, readPythonPackage } from "../scripts/starter-model.mjs";

const IS_LICENSE = /^(licen[cs]e|copying|notice|unlicense)/i;

/** Sources in other languages that a crate contains, with their licenses. */
const isVendored = (name) => /^(oniguruma|mlx-c|mlx)$/.test(name);

/**
 * Those of the crates that are compiled into the addon.
 *
 * @param {string} target Rust's name of the platform
 * @param {{ [name: string]: string | undefined }} rust environment in which cargo is found
 * @param {string} [mlx] variant on Linux
 */
export async function crateNotices(target, rust, mlx) {
  const features = mlx ? ["--features=mlx"] : [];
  const format = ["--edges=normal", "--prefix=none", "--format={p}"];
  const tree = await run("cargo", ["tree", "--quiet", "--locked", ...format, `--target=${target}`, ...features], rust);
  const used = new Set(tree.split("\n").map((line) => line.split(" ").slice(0, 2).join(" ").replace(/ v/, " ")));
  const metadata = await run("cargo", ["metadata", "--quiet", "--locked", "--format-version=1"], rust);
  const crates = JSON.parse(metadata).packages.filter(
    ({ name, version, source }) => source !== null && used.has(`${name} ${version}`),
  );
  /** @type {Map<string, string[]>} the crates of each text; most texts are those of many */
  const byText = new Map();
  for (const { name, version, license, manifest_path } of crates) {
    for (const text of licenseTexts(path.dirname(manifest_path))) {
      byText.set(text, [...(byText.get(text) ?? []), `${name} ${version} (${license})`]);
    }
  }
  return [...byText].map(([text, names]) => `${names.join("\n")}\n\n${text}`).join(`\n${"-".repeat(80)}\n`);
}

function licenseTexts(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const inside = path.join(folder, entry.name);
    if (entry.isDirectory()) return isVendored(entry.name) ? licenseTexts(inside) : [];
    return IS_LICENSE.test(entry.name) ? [readFileSync(inside, "utf8").trim().replaceAll("\r\n", "\n")] : [];
  });
}

/** That of ONNX Runtime and its parts, which its packages for Python carry, and those for Node.js do not. */
export async function onnxRuntimeNotices(version) {
  const folder = path.join(cacheFolder(), "release", `onnxruntime-${version}`);
  const file = path.join(folder, "notices.txt");
  if (!existsSync(file)) {
    mkdirSync(folder, { recursive: true });
    const names = ["onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt"];
    const entries = await readPythonPackage(`onnxruntime==${version}`, (name) => names.includes(name));
    writeFileSync(file, [`ONNX Runtime ${version}\n`, ...names.map((name) => entries.get(name))].join("\n"));
  }
  return readFileSync(file, "utf8");
}

/** MLX's, from its wheel. The libraries beside it are parts of GCC and LAPACK, whose licenses allow that they are linked. */
export function mlxNotices({ library }) {
  const wheel = path.resolve(library, "../..");
  const [metadata] = readdirSync(wheel).filter((name) => /^mlx_.*\.dist-info$/.test(name));
  return `MLX\n\n${readFileSync(path.join(wheel, metadata, "licenses/LICENSE"), "utf8")}`;
}
