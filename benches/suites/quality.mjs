/** How well each configuration retrieves: `quality/run.mjs` in a process of its own, and what it found. */

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { cacheFolder } from "../install.mjs";
import { measured } from "../peers.mjs";

const SCRIPT = fileURLToPath(new URL("../quality/run.mjs", import.meta.url));

/**
 * @param {number} pairs questions and the functions that answer them
 * @returns {{ table: string[], passed: boolean } | { missing: string }} the script's table, a line each
 */
export function measureQuality(pairs) {
  if (!existsSync(SCRIPT)) return { missing: "there is no benches/quality/run.mjs" };
  const out = path.join(cacheFolder(), "quality");
  mkdirSync(out, { recursive: true });
  const args = [SCRIPT, "--bounded", `--pairs=${pairs}`, `--package=${measured.package}`, `--out=${out}`];
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
  // 1 is the exit code for bounds that were missed, and for an error.
  if (status !== 0 && stderr.includes("Error"))
    return {
      missing: stderr
        .trim()
        .split("\n")
        .find((line) => line.includes("Error")),
    };
  const table = readFileSync(path.join(out, "RESULTS.md"), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("|"));
  return { table, passed: status === 0 };
}
