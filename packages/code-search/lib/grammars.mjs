/**
 * Loads tree-sitter and its grammars, all of it synchronously: where an event loop has nothing to wait for but a
 * compilation of WebAssembly, Node can stand still for ever (nodejs/node#54918).
 */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { Language, Parser } from "web-tree-sitter";

const require = createRequire(import.meta.url);
/** Where scripts/bundle-grammars.mjs copies the grammars of packages that are not installed with this one. */
export const BUNDLED = new URL("../grammars/", import.meta.url);

/** Packages that hold one grammar each; all other grammars are in @vscode/tree-sitter-wasm. */
export const GRAMMAR_PACKAGES = {
  c: "tree-sitter-c",
  elixir: "tree-sitter-elixir",
  haskell: "tree-sitter-haskell",
  kotlin: "@tree-sitter-grammars/tree-sitter-kotlin",
  lua: "@tree-sitter-grammars/tree-sitter-lua",
  scala: "tree-sitter-scala",
  zig: "@tree-sitter-grammars/tree-sitter-zig",
};

/** A hundred times longer than any source of its own language takes. Of other texts, a parser can need minutes. */
const PARSE_MS = 2000;

/** @type {Promise<void> | undefined} */
let runtime;
/** @type {Map<string, Parser | undefined>} */
const parsers = new Map();

/**
 * @param {string} grammar
 * @returns {Promise<Parser | undefined>} `undefined` where the grammar is not installed
 */
export async function loadParser(grammar) {
  runtime ??= Parser.init({ instantiateWasm });
  await runtime;
  if (!parsers.has(grammar)) parsers.set(grammar, parserOf(grammar));
  return parsers.get(grammar);
}

/**
 * Emscripten's hook, called instead of its own loading.
 *
 * @param {WebAssembly.Imports} imports
 * @param {(instance: WebAssembly.Instance, module: WebAssembly.Module) => void} done
 */
function instantiateWasm(imports, done) {
  const module = compile(require.resolve("web-tree-sitter/web-tree-sitter.wasm"));
  done(new WebAssembly.Instance(module, imports), module);
}

/** @param {string} grammar */
function parserOf(grammar) {
  const file = grammarFile(grammar);
  return file === undefined ? undefined : new Parser().setLanguage(Language.loadSync(compile(file)));
}

/**
 * @param {string} grammar
 * @returns {string | undefined} the file that holds it, if it is there
 */
export function grammarFile(grammar) {
  const name = `tree-sitter-${grammar}.wasm`;
  const bundled = fileURLToPath(new URL(name, BUNDLED));
  if (existsSync(bundled)) return bundled;
  const packages = /** @type {Record<string, string>} */ (GRAMMAR_PACKAGES);
  const own = packages[grammar];
  try {
    return require.resolve(own === undefined ? `@vscode/tree-sitter-wasm/wasm/${name}` : `${own}/${name}`);
  } catch {
    return undefined;
  }
}

/**
 * @param {Parser} parser
 * @param {string} source
 * @returns {import("web-tree-sitter").Tree | null} `null` if it takes too long
 */
export function parse(parser, source) {
  const end = performance.now() + PARSE_MS;
  const tree = parser.parse(source, null, { progressCallback: () => performance.now() > end });
  if (!tree) parser.reset();
  return tree;
}

/** @param {string} file */
function compile(file) {
  return new WebAssembly.Module(readFileSync(file));
}
