/**
 * Copies the grammars of the development packages into `grammars/`, with their licences: the published package does not
 * depend on those packages, which compile a native parser when they are installed.
 */

import { copyFileSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { BUNDLED, GRAMMAR_PACKAGES } from "../lib/grammars.mjs";

const target = process.argv[2] ?? fileURLToPath(BUNDLED);
const require = createRequire(import.meta.url);

rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
for (const [grammar, name] of Object.entries(GRAMMAR_PACKAGES)) {
  const folder = path.dirname(require.resolve(`${name}/package.json`));
  const licence = readdirSync(folder).find((file) => /^licen[cs]e/i.test(file));
  if (licence === undefined) throw new Error(`${name} has no licence file`);
  copyFileSync(path.join(folder, `tree-sitter-${grammar}.wasm`), path.join(target, `tree-sitter-${grammar}.wasm`));
  copyFileSync(path.join(folder, licence), path.join(target, `tree-sitter-${grammar}.LICENSE`));
}
