/**
 * Licenses, sources and hashes of everything that is depended on, against the list in `deny.toml`: crates as `cargo
 * metadata --locked` has them, which requires their hashes to be in the lock file, npm packages as the lock files have
 * them. `cargo deny` checks more, but takes longer to compile than all tests run.
 */

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { ROOT, run, rustEnvironment } from "./setup.mjs";

const CRATES = [
  ".",
  "xtask",
  "fuzz",
  "tests/loom",
  "tests/vulkan_faults",
  "benches/drivers/candle",
  "benches/suites/stage_timer",
].map((folder) => `${folder}/Cargo.toml`);
const PACKAGES = [".", "packages/code-search", "__test__/integrations", "docs/reference", "release"].map(
  (folder) => `${folder}/package-lock.json`,
);
/** Licenses that packages declare in an old form, which lock files do not have. */
const OLD_FORM = { "node_modules/json-bignum": "MIT" };

/** `allow` of deny.toml, and the licenses that single crates may have besides. */
export function readPolicy(text) {
  const uncommented = text.replace(/#.*$/gm, "");
  const strings = (list) => [...(list ?? "").matchAll(/"([^"]+)"/g)].map(([, name]) => name);
  const allowed = strings(/^allow = \[([^\]]*)\]/m.exec(uncommented)?.[1]);
  const exceptions = new Map();
  for (const [, crate, list] of uncommented.matchAll(/\{ crate = "([^"]+)", allow = \[([^\]]*)\] \}/g)) {
    exceptions.set(crate, strings(list));
  }
  return { allowed, exceptions };
}

/**
 * Whether an SPDX expression can be met with these licenses. `/`, as older crates have it, is `OR`.
 *
 * @param {string} expression
 * @param {readonly string[]} allowed
 */
export function isAllowed(expression, allowed) {
  const tokens = expression
    .replace(/ WITH /g, "-WITH-")
    .replace(/\s*\/\s*/g, " OR ")
    .split(/\s+|(?=[()])|(?<=[()])/)
    .filter(Boolean);
  const either = () => {
    let result = all();
    while (tokens[0] === "OR") {
      tokens.shift();
      // Not `||`, which would leave the right side unread.
      const right = all();
      result = result || right;
    }
    return result;
  };
  const all = () => {
    let result = one();
    while (tokens[0] === "AND") {
      tokens.shift();
      const right = one();
      result = result && right;
    }
    return result;
  };
  const one = () => {
    const token = tokens.shift();
    if (token !== "(") return allowed.includes(token?.replace("-WITH-", " WITH "));
    const result = either();
    return tokens.shift() === ")" && result;
  };
  return either() && tokens.length === 0;
}

/** @param {{ [name: string]: string | undefined }} rust environment in which cargo is found */
async function crateProblems(manifest, { allowed, exceptions }, rust) {
  const output = await run(
    "cargo",
    ["metadata", "--quiet", "--locked", "--format-version=1", `--manifest-path=${manifest}`],
    rust,
  );
  const { packages } = JSON.parse(output);
  const problems = [];
  for (const { name, version, license, source } of packages) {
    if (source === null) continue;
    if (!source.startsWith("registry+")) problems.push(`crate ${name} ${version} comes from ${source}`);
    if (!isAllowed(license ?? "", [...allowed, ...(exceptions.get(name) ?? [])])) {
      problems.push(`crate ${name} ${version} has the license ${license}`);
    }
  }
  return problems;
}

/**
 * @param {{ [folder: string]: object }} packages those of a lock file
 * @param {{ allowed: readonly string[] }} policy
 */
export function packageProblems(packages, { allowed }) {
  const problems = [];
  for (const [folder, entry] of Object.entries(packages)) {
    const { version, license = OLD_FORM[folder], link, dev, optional, integrity, resolved } = entry;
    // This package itself, and programs for other platforms that development tools would install there.
    if (!folder.startsWith("node_modules/") || link || (dev && optional && license === undefined)) continue;
    const name = `npm package ${folder} ${version}`;
    if (!isAllowed(license ?? "", allowed)) problems.push(`${name} has the license ${license}`);
    // `.npmrc` keeps the registry's own addresses out of lock files.
    if (resolved) problems.push(`${name} comes from ${resolved}`);
    if (!integrity) problems.push(`${name} has no hash`);
  }
  return problems;
}

/** @throws Error that names every dependency whose license or source `deny.toml` does not allow */
export async function checkLicenses(rust) {
  const policy = readPolicy(readFileSync(path.join(ROOT, "deny.toml"), "utf8"));
  const packagesOf = (lockFile) => JSON.parse(readFileSync(path.join(ROOT, lockFile), "utf8")).packages;
  const problems = PACKAGES.flatMap((lockFile) => packageProblems(packagesOf(lockFile), policy));
  for (const manifest of CRATES) problems.push(...(await crateProblems(manifest, policy, rust)));
  if (problems.length > 0) throw new Error(`${problems.join("\n")}\ndeny.toml has the list of what is allowed`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await checkLicenses(rustEnvironment());
