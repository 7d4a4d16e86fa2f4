/** The licenses of the crates that are compiled into the addon, as their authors wrote them. */

import { readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { run } from "../scripts/setup.mjs";

const IS_LICENSE = /^(licen[cs]e|copying|notice|unlicense)/i;

/** Sources in other languages that a crate contains, with their licenses. */
const isVendored = (name) => /^(oniguruma|mlx-c|mlx)$/.test(name);

/**
 * @param {string} target Rust's name of the platform
 * @param {{ [name: string]: string | undefined }} rust environment in which cargo is found
 */
export async function crateNotices(target, rust) {
  const tree = await run(
    "cargo",
    ["tree", "--quiet", "--locked", "--edges=normal", "--prefix=none", "--format={p}", `--target=${target}`],
    rust,
  );
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
