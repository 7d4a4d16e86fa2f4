/**
 * What the chunker knows about languages: one row each, with its grammar and the syntax nodes that define something.
 * Files of other languages are cut by lib/declarations.mjs.
 */

import * as path from "node:path";
import { loadParser } from "./grammars.mjs";

/** @typedef {import("web-tree-sitter").Node} Node */
/** @typedef {(node: Node) => string | undefined} NameOf the name that a node defines, if it does */
/** @typedef {Record<string, NameOf>} Names by the node's type */
/**
 * @typedef {object} Language
 * @property {string} grammar
 * @property {string[]} endings of file names, or whole names
 * @property {RegExp} [interpreter] of scripts whose name has no ending
 * @property {Names} definitions functions, methods and types, which are searched for by their name
 * @property {Names} [scopes] what gives its name to what is in it, but defines nothing: namespaces, implementations
 * @property {Names} [values] variables, aliases and macros, which count at the top of a file if they take several lines
 * @property {Names} [sections] what is named, but small, so that neighbours are joined
 * @property {Record<string, (node: Node) => Node | null | undefined>} [wrappers] what a definition may stand in
 * @property {string[]} [transparent] nodes whose children stand for themselves
 * @property {boolean} [hasMacros] whether sources are often not what the grammar expects, and yet good to cut by it
 * @property {Record<string, (node: Node) => boolean>} leading what belongs to what stands right below it
 */
/**
 * @typedef {object} Definition
 * @property {string} name
 * @property {number} row of the name, below annotations and decorators
 * @property {Node} node without what is wrapped around it, as `export` or decorators
 * @property {"definition" | "scope" | "section"} kind
 */

const LONGEST_NAME = 80;

/**
 * @param {string} field that holds the name
 * @param {string[]} types of nodes
 * @returns {Names}
 */
const byField = (field, ...types) =>
  Object.fromEntries(types.map((type) => [type, (node) => node.childForFieldName(field)?.text]));

/**
 * @param {string} childType of the child that is the name
 * @param {string[]} types of nodes
 * @returns {Names}
 */
const byChild = (childType, ...types) =>
  Object.fromEntries(types.map((type) => [type, (node) => childOfType(node, childType)?.text]));

/** @param {string[]} types */
const named = (...types) => byField("name", ...types);

/**
 * @param {string} name which every such node gets
 * @param {string[]} types
 * @returns {Names}
 */
const called = (name, ...types) => Object.fromEntries(types.map((type) => [type, () => name]));

/**
 * @param {string[]} types
 * @returns {Language["leading"]}
 */
const always = (...types) => Object.fromEntries(types.map((type) => [type, () => true]));

/**
 * @param {Node} node
 * @param {...string} types
 */
function childOfType(node, ...types) {
  return node.namedChildren.find((child) => child !== null && types.includes(child.type));
}

/**
 * The name of a variable or field if its value is of one of some types.
 *
 * @param {string} nameField
 * @param {string} valueField
 * @param {Set<string>} types
 * @returns {NameOf}
 */
const assigned = (nameField, valueField, types) => (node) => {
  const value = node.childForFieldName(valueField);
  return value && types.has(value.type) ? node.childForFieldName(nameField)?.text : undefined;
};

/**
 * @param {NameOf} nameOf
 * @returns {NameOf} of a declaration with one variable only
 */
const ofOnlyChild = (nameOf) => (node) => {
  const child = node.namedChildCount === 1 ? node.namedChild(0) : null;
  return child ? nameOf(child) : undefined;
};

/**
 * @param {Node} node
 * @param {string} field
 * @returns {string | undefined} what the field holds, if that is a plain name
 */
function identifier(node, field) {
  const name = node.childForFieldName(field);
  return name && /^[\p{L}_$][\w$]*$/u.test(name.text) ? name.text : undefined;
}

const FUNCTION_VALUES = new Set(["arrow_function", "function_expression", "generator_function", "class"]);

/** TypeScript and JavaScript. */
const SCRIPT = {
  definitions: {
    ...named("function_declaration", "generator_function_declaration", "method_definition", "class_declaration"),
    ...named("abstract_class_declaration", "interface_declaration", "type_alias_declaration", "enum_declaration"),
    // Overloads and declarations of what is defined elsewhere.
    ...named("function_signature"),
    lexical_declaration: ofOnlyChild(assigned("name", "value", FUNCTION_VALUES)),
    variable_declaration: ofOnlyChild(assigned("name", "value", FUNCTION_VALUES)),
    assignment_expression: assigned("left", "right", FUNCTION_VALUES),
    field_definition: assigned("property", "value", FUNCTION_VALUES),
    public_field_definition: assigned("name", "value", FUNCTION_VALUES),
    export_statement: (/** @type {Node} */ node) =>
      FUNCTION_VALUES.has(node.childForFieldName("value")?.type ?? "") ? "default" : undefined,
  },
  scopes: named("internal_module", "module"),
  values: {
    lexical_declaration: ofOnlyChild((node) => identifier(node, "name")),
    variable_declaration: ofOnlyChild((node) => identifier(node, "name")),
  },
  wrappers: {
    export_statement: (/** @type {Node} */ node) => node.childForFieldName("declaration"),
    ambient_declaration: (/** @type {Node} */ node) => node.namedChild(0),
    expression_statement: (/** @type {Node} */ node) => node.namedChild(0),
  },
  leading: always("comment", "decorator"),
};

/**
 * The name that a declarator of C is about: `*name(int a)`, `Class::name(int a)`, `(*name)[2]`.
 *
 * @param {Node} node
 * @returns {string | undefined}
 */
function declared(node) {
  /** @type {Node | null | undefined} */
  let inner = node.childForFieldName("declarator");
  while (inner) {
    const next = inner.childForFieldName("declarator");
    if (next) inner = next;
    else if (/declarator$/.test(inner.type)) inner = inner.namedChild(inner.namedChildCount - 1);
    // Parameters of templates are no part of the name.
    else return inner.text.replace(/<[^<>=]*>/g, "");
  }
  return undefined;
}

/**
 * Without a body, a struct is only named, not defined.
 *
 * @param {Node} node
 */
const ifBody = (node) => (node.childForFieldName("body") ? node.childForFieldName("name")?.text : undefined);

const C = {
  definitions: {
    function_definition: declared,
    struct_specifier: ifBody,
    union_specifier: ifBody,
    enum_specifier: ifBody,
  },
  values: {
    type_definition: declared,
    ...named("preproc_function_def"),
    declaration: (/** @type {Node} */ node) =>
      node.childForFieldName("declarator")?.type === "init_declarator" ? declared(node) : undefined,
  },
  transparent: ["preproc_if", "preproc_ifdef", "preproc_elif", "preproc_else", "linkage_specification", "ERROR"],
  hasMacros: true,
  leading: always("comment"),
};

const ZIG_TYPES = ["struct_declaration", "enum_declaration", "union_declaration", "opaque_declaration"];

/** Of Elixir: what is defined with the macros of Kernel. */
const ELIXIR_MODULES = new Set(["defmodule", "defprotocol"]);
const ELIXIR_FUNCTIONS = /^def(p|macrop?|guardp?|delegate|np?)?$/;

/** @type {Language[]} */
export const LANGUAGES = [
  { grammar: "typescript", endings: [".ts", ".mts", ".cts"], ...SCRIPT },
  { grammar: "tsx", endings: [".tsx"], ...SCRIPT },
  { grammar: "javascript", endings: [".js", ".mjs", ".cjs", ".jsx"], interpreter: /\bnode\b/, ...SCRIPT },
  {
    grammar: "python",
    endings: [".py", ".pyi"],
    interpreter: /\bpython/,
    definitions: named("function_definition", "class_definition"),
    values: { assignment: (node) => identifier(node, "left") },
    wrappers: {
      decorated_definition: (node) => node.childForFieldName("definition"),
      expression_statement: (node) => node.namedChild(0),
    },
    leading: always("comment"),
  },
  {
    grammar: "rust",
    endings: [".rs"],
    definitions: {
      ...named("function_item", "struct_item", "enum_item", "union_item", "trait_item", "macro_definition"),
    },
    scopes: {
      // `mod name;` holds nothing.
      mod_item: ifBody,
      // Methods belong to the type, whatever trait they implement and whatever its parameters are.
      impl_item: (node) => {
        const type = node.childForFieldName("type");
        return (type?.childForFieldName("type") ?? type)?.text;
      },
    },
    values: named("const_item", "static_item", "type_item"),
    leading: always("line_comment", "block_comment", "attribute_item"),
  },
  {
    grammar: "go",
    endings: [".go"],
    definitions: {
      ...named("function_declaration"),
      method_declaration: (node) => {
        const receiver = node.childForFieldName("receiver")?.text.match(/(\w+)(\[.*\])?\s*\)$/)?.[1];
        return [receiver, node.childForFieldName("name")?.text].filter(Boolean).join(".");
      },
      type_declaration: (node) => node.namedChild(0)?.childForFieldName("name")?.text,
    },
    values: {
      const_declaration: ofOnlyChild((node) => identifier(node, "name")),
      var_declaration: ofOnlyChild((node) => identifier(node, "name")),
    },
    leading: always("comment"),
  },
  {
    grammar: "java",
    endings: [".java"],
    definitions: {
      ...named("class_declaration", "interface_declaration", "enum_declaration", "record_declaration"),
      ...named("annotation_type_declaration", "method_declaration", "constructor_declaration"),
      ...named("compact_constructor_declaration"),
    },
    leading: always("line_comment", "block_comment"),
  },
  {
    grammar: "kotlin",
    endings: [".kt", ".kts"],
    definitions: {
      ...named("class_declaration", "object_declaration", "function_declaration"),
      ...byField("type", "type_alias"),
      ...called("constructor", "secondary_constructor"),
    },
    scopes: { companion_object: (node) => node.childForFieldName("name")?.text ?? "Companion" },
    values: {
      property_declaration: (node) => childOfType(node, "variable_declaration")?.namedChild(0)?.text,
    },
    leading: always("line_comment", "block_comment"),
  },
  {
    grammar: "scala",
    endings: [".scala", ".sc", ".sbt"],
    definitions: {
      ...named("class_definition", "trait_definition", "object_definition", "enum_definition", "package_object"),
      ...named("function_definition", "function_declaration", "type_definition", "given_definition"),
    },
    scopes: { ...called("", "extension_definition"), package_clause: ifBody },
    values: byField("pattern", "val_definition"),
    leading: always("comment", "block_comment"),
  },
  {
    grammar: "c-sharp",
    endings: [".cs"],
    definitions: {
      ...named("class_declaration", "struct_declaration", "interface_declaration", "record_declaration"),
      ...named("enum_declaration", "delegate_declaration", "method_declaration", "constructor_declaration"),
      ...named("property_declaration", "event_declaration", "local_function_statement"),
      ...called("this", "indexer_declaration"),
      destructor_declaration: (node) => `~${node.childForFieldName("name")?.text}`,
      operator_declaration: (node) => `operator ${node.childForFieldName("operator")?.text ?? ""}`.trim(),
    },
    scopes: named("namespace_declaration"),
    leading: always("comment"),
  },
  {
    grammar: "php",
    endings: [".php", ".phtml"],
    interpreter: /\bphp\b/,
    definitions: {
      ...named("class_declaration", "interface_declaration", "trait_declaration", "enum_declaration"),
      ...named("function_definition", "method_declaration"),
    },
    scopes: { namespace_definition: ifBody },
    leading: always("comment"),
  },
  {
    grammar: "ruby",
    endings: [".rb", ".rake", ".gemspec", ".ru", "Rakefile", "Gemfile"],
    interpreter: /\bruby\b/,
    definitions: named("method", "singleton_method", "class", "module"),
    scopes: called("", "singleton_class"),
    values: { assignment: (node) => identifier(node, "left") },
    leading: always("comment"),
  },
  { grammar: "c", endings: [".c"], ...C },
  {
    grammar: "cpp",
    endings: [".cc", ".cpp", ".cxx", ".c++", ".hh", ".hpp", ".hxx", ".h++", ".ipp", ".inl", ".tcc", ".cu", ".cuh"],
    ...C,
    definitions: {
      ...C.definitions,
      class_specifier: ifBody,
      ...named("concept_definition"),
    },
    scopes: { namespace_definition: (node) => node.childForFieldName("name")?.text ?? "" },
    wrappers: { template_declaration: (node) => node.namedChild(node.namedChildCount - 1) },
  },
  {
    grammar: "bash",
    endings: [".sh", ".bash", ".zsh", ".bats", ".bashrc", ".zshrc", ".profile"],
    interpreter: /\b(ba|z|k|da)?sh\b/,
    definitions: named("function_definition"),
    leading: always("comment"),
  },
  {
    grammar: "powershell",
    endings: [".ps1", ".psm1"],
    interpreter: /\bpwsh\b/,
    definitions: {
      ...byChild("function_name", "function_statement"),
      ...byChild("simple_name", "class_statement", "enum_statement", "class_method_definition"),
    },
    transparent: ["statement_list"],
    leading: always("comment"),
  },
  {
    grammar: "css",
    endings: [".css"],
    definitions: {},
    sections: {
      ...byChild("selectors", "rule_set"),
      ...byChild("keyframes_name", "keyframes_statement"),
      ...called("@media", "media_statement"),
      ...called("@supports", "supports_statement"),
    },
    leading: always("comment"),
  },
  {
    grammar: "lua",
    endings: [".lua"],
    interpreter: /\blua/,
    definitions: {
      function_declaration: (node) => node.childForFieldName("name")?.text.replace(":", "."),
      variable_declaration: ofOnlyChild(luaFunction),
      assignment_statement: luaFunction,
    },
    values: { variable_declaration: ofOnlyChild((node) => node.namedChild(0)?.text) },
    leading: always("comment"),
  },
  {
    grammar: "zig",
    endings: [".zig", ".zon"],
    definitions: {
      ...named("function_declaration"),
      variable_declaration: (node) =>
        childOfType(node, ...ZIG_TYPES) ? childOfType(node, "identifier")?.text : undefined,
      test_declaration: (node) => childOfType(node, "string", "identifier")?.text.replaceAll('"', ""),
    },
    values: byChild("identifier", "variable_declaration"),
    leading: always("comment"),
  },
  {
    grammar: "haskell",
    endings: [".hs"],
    definitions: {
      ...named("function", "bind", "data_type", "newtype", "class", "type_synomym", "type_family", "pattern_synonym"),
    },
    scopes: { instance: (node) => (node.childForFieldName("patterns") ?? node.childForFieldName("name"))?.text },
    transparent: ["declarations", "imports"],
    leading: always("comment", "haddock", "pragma", "signature"),
  },
  {
    grammar: "elixir",
    endings: [".ex", ".exs"],
    interpreter: /\belixir\b/,
    definitions: { call: elixirDefinition },
    scopes: {
      call: (node) =>
        node.childForFieldName("target")?.text === "defimpl"
          ? (node.text.match(/\bfor:\s*([\w.]+)/) ?? node.text.match(/defimpl\s+([\w.]+)/))?.[1]
          : undefined,
    },
    leading: {
      comment: () => true,
      unary_operator: (node) => /^@(doc|typedoc|spec|impl|deprecated|since)\b/.test(node.text),
    },
  },
];

/** @type {NameOf} */
function luaFunction(node) {
  const [names, values] = node.namedChildren;
  return values?.namedChild(0)?.type === "function_definition" ? names?.text : undefined;
}

/** @type {NameOf} */
function elixirDefinition(node) {
  const target = node.childForFieldName("target")?.text ?? "";
  const isFunction = ELIXIR_FUNCTIONS.test(target);
  if (!isFunction && !ELIXIR_MODULES.has(target)) return undefined;
  let head = childOfType(node, "arguments")?.namedChild(0);
  if (head?.type === "binary_operator") head = head.childForFieldName("left");
  return isFunction && head?.type === "call" ? head.childForFieldName("target")?.text : head?.text;
}

const BY_GRAMMAR = new Map(LANGUAGES.map((language) => [language.grammar, language]));
const BY_ENDING = new Map(LANGUAGES.flatMap((language) => language.endings.map((ending) => [ending, language])));

/**
 * @param {string} file
 * @param {string} source
 * @returns {Language | undefined}
 */
export function languageOf(file, source) {
  const ending = path.extname(file).toLowerCase();
  if (ending === ".h") return headerLanguage(source);
  if (ending !== "") return BY_ENDING.get(ending);
  const script = source.match(/^#!.*/)?.[0];
  return (
    BY_ENDING.get(path.basename(file)) ??
    (script === undefined ? undefined : LANGUAGES.find(({ interpreter }) => interpreter?.test(script)))
  );
}

/** @param {string} source */
function headerLanguage(source) {
  // Objective-C has no grammar here.
  if (/^@(interface|protocol|class)\b/m.test(source)) return undefined;
  return BY_GRAMMAR.get(/^\s*(class|namespace|template|using)\b|::|^\s*(public|private):/m.test(source) ? "cpp" : "c");
}

/**
 * The parser of a file, by its ending or what it is run with; `undefined` where there is no grammar.
 *
 * @param {string} file
 * @param {string} [source] tells the language of headers and scripts
 */
export async function parserFor(file, source = "") {
  const language = languageOf(file, source);
  return language && loadParser(language.grammar);
}

/**
 * @param {Node} node
 * @param {Language} language
 */
export function isLeading(node, { leading }) {
  return of(leading, node) === true;
}

/**
 * What a node defines.
 *
 * @param {Node} node
 * @param {Language} language
 * @param {boolean} isTop whether it stands at the top of its file and takes several lines, so that variables count
 * @returns {Definition | undefined}
 */
export function definitionOf(node, language, isTop) {
  const { definitions, scopes, values, sections, wrappers } = language;
  const found = (/** @type {string} */ name, /** @type {Definition["kind"]} */ kind) => {
    const { row } = (node.childForFieldName("name") ?? node).startPosition;
    return { name: spelled(name), row, node, kind };
  };
  const name = of(definitions, node) ?? (isTop ? of(values, node) : undefined);
  if (name !== undefined) return found(name, "definition");
  const scope = of(scopes, node);
  if (scope !== undefined) return found(scope, "scope");
  const section = of(sections, node);
  if (section !== undefined) return found(section, "section");
  const inner = of(wrappers, node);
  return inner ? definitionOf(inner, language, isTop) : undefined;
}

/**
 * What a table has to say of a node. Grammars have types like `constructor`, which every object has.
 *
 * @template T
 * @param {Record<string, (node: Node) => T> | undefined} table
 * @param {Node} node
 * @returns {T | undefined}
 */
function of(table, node) {
  return table && Object.hasOwn(table, node.type) ? table[node.type]?.(node) : undefined;
}

/** @param {string} name */
function spelled(name) {
  return name.replaceAll("::", ".").replace(/\s+/g, " ").slice(0, LONGEST_NAME);
}
