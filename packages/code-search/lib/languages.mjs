/** What the chunker knows about languages: their grammars, and which syntax nodes are definitions of what name. */

import { createRequire } from "node:module";
import * as path from "node:path";
import { Language, Parser } from "web-tree-sitter";

/** @typedef {import("web-tree-sitter").Node} Node */

const GRAMMARS = {
  typescript: [".ts", ".mts", ".cts"],
  tsx: [".tsx"],
  javascript: [".js", ".mjs", ".cjs", ".jsx"],
  python: [".py", ".pyi"],
  rust: [".rs"],
  go: [".go"],
};
const GRAMMAR_OF = new Map(Object.entries(GRAMMARS).flatMap(([name, endings]) => endings.map((end) => [end, name])));

/** Definitions that carry their name in the field `name`. */
const NAMED = new Set([
  // TypeScript and JavaScript
  ...["function_declaration", "generator_function_declaration", "method_definition", "class_declaration"],
  ...["abstract_class_declaration", "interface_declaration", "type_alias_declaration", "enum_declaration"],
  "internal_module",
  // Python
  ...["function_definition", "class_definition"],
  // Rust
  ...["function_item", "struct_item", "enum_item", "union_item", "trait_item", "macro_definition"],
]);
const FUNCTION_VALUES = new Set(["arrow_function", "function_expression", "generator_function", "class"]);

/** Nodes that belong to what stands right below them. */
const LEADING = new Set(["comment", "line_comment", "block_comment", "attribute_item", "decorator"]);

const require = createRequire(import.meta.url);
/** @type {Map<string, Promise<Parser>>} */
const parsers = new Map();

/**
 * The parser of a file, by its ending; `undefined` where there is no grammar.
 *
 * @param {string} file
 */
export async function parserFor(file) {
  const grammar = GRAMMAR_OF.get(path.extname(file).toLowerCase());
  if (grammar === undefined) return undefined;
  if (!parsers.has(grammar)) parsers.set(grammar, loadParser(grammar));
  return parsers.get(grammar);
}

/** @param {string} grammar */
async function loadParser(grammar) {
  await Parser.init();
  const wasm = require.resolve(`@vscode/tree-sitter-wasm/wasm/tree-sitter-${grammar}.wasm`);
  return new Parser().setLanguage(await Language.load(wasm));
}

/** @param {Node} node */
export function isLeading(node) {
  return LEADING.has(node.type);
}

/**
 * What a node defines.
 *
 * @param {Node} node
 * @returns {{ name: string, node: Node } | undefined} The name, and the node without `export` or decorators around it;
 * `undefined` if the node is no definition.
 */
export function definitionOf(node) {
  const name = NAMED.has(node.type) ? node.childForFieldName("name")?.text : undefined;
  if (name !== undefined) return { name, node };
  switch (node.type) {
    case "decorated_definition":
      return inner(node.childForFieldName("definition"));
    case "export_statement": {
      const value = node.childForFieldName("value");
      if (value && FUNCTION_VALUES.has(value.type)) return { name: "default", node: value };
      return inner(node.childForFieldName("declaration"));
    }
    case "ambient_declaration":
    case "expression_statement":
      return inner(node.namedChild(0));
    case "lexical_declaration":
    case "variable_declaration":
      return node.namedChildCount === 1 ? valued(node.namedChild(0), "name", "value") : undefined;
    // exports.name = function …
    case "assignment_expression":
      return valued(node, "left", "right");
    case "field_definition":
      return valued(node, "property", "value");
    case "public_field_definition":
      return valued(node, "name", "value");
    // Rust: `mod name;` defines nothing here.
    case "mod_item":
      return node.childForFieldName("body") ? named(node, node.childForFieldName("name")) : undefined;
    // Methods belong to the type, whatever trait they implement and whatever its parameters are.
    case "impl_item": {
      const type = node.childForFieldName("type");
      return named(node, type?.childForFieldName("type") ?? type);
    }
    // Go
    case "method_declaration": {
      const receiver = node.childForFieldName("receiver")?.text.match(/(\w+)(\[.*\])?\s*\)$/)?.[1];
      const method = node.childForFieldName("name")?.text;
      return { name: receiver ? `${receiver}.${method}` : `${method}`, node };
    }
    case "type_declaration":
      return named(node, node.namedChild(0)?.childForFieldName("name"));
    default:
      return undefined;
  }
}

/** @param {Node | null} node */
function inner(node) {
  return node ? definitionOf(node) : undefined;
}

/**
 * @param {Node} node
 * @param {Node | null | undefined} name what stands for its name
 */
function named(node, name) {
  return name ? { name: name.text, node } : undefined;
}

/**
 * A variable or field counts if a function or class is assigned to it.
 *
 * @param {Node | null} node
 * @param {string} nameField
 * @param {string} valueField
 */
function valued(node, nameField, valueField) {
  const value = node?.childForFieldName(valueField);
  return node && value && FUNCTION_VALUES.has(value.type) ? named(node, node.childForFieldName(nameField)) : undefined;
}
