/**
 * Finds the declarations of a file without a parser, by the keywords that lines begin with and by indentation: for
 * languages without a grammar, and for what a grammar does not understand.
 */

import * as path from "node:path";
import { LANGUAGES } from "./languages.mjs";

/**
 * @typedef {object} Declaration
 * @property {string} name
 * @property {number} row of the line that holds the name; counts from 0
 * @property {number} start row of the first comment or attribute above it
 * @property {number} level indentation, or depth of a heading
 * @property {"definition" | "scope" | "section"} kind as of a syntax node; sections are those of a text
 */
/**
 * @typedef {object} Pattern
 * @property {string[]} endings
 * @property {RegExp[]} patterns of a line; the first group is what is before the name, the group `name` the name
 * @property {boolean} [isText] whether these are sections of a text, no definitions
 */

/** What may stand before a keyword. */
const MODIFIERS =
  `(?:(?:export|default|declare|pub(?:lic|\\([^)]*\\))?|private(?:\\(set\\))?|protected|internal|package|open|
  fileprivate|static|final|abstract|async|override|virtual|sealed|inline|extern|external|unsafe|const|mutating|mutable|
  nonmutating|convenience|required|lazy|weak|indirect|partial|data|base|mixin|distributed|nonisolated|isolated|
  class(?=\\s+(?:func|var))|shared|pure|local|@[\\w.]+(?:\\([^)]*\\))?)\\s+)*`.replace(/\s*\n\s*/g, "");
const KEYWORDS =
  `func|fun|fn|function|def|sub|proc|procedure|macro|class|struct|enum|protocol|extension|interface|trait|
  module|impl|actor|union|type|typealias|typedef|namespace|package|contract|library|modifier|object|mixin|template|
  abstract type`.replace(/\s*\n\s*/g, "");
/** Names may be quoted or qualified; a receiver or parameters of a type may stand before them. */
const NAME = '(?:\\([^)]*\\)\\s*|<[^>]*>\\s*)?[`"]?(?<name>[\\p{L}_$][\\w$]*(?:(?:\\.|::)[\\w$]+)*[!?]?)';

const KEYWORD = new RegExp(`^(\\s*)${MODIFIERS}(?:${KEYWORDS})[*!]?\\s+${NAME}`, "u");
/** `Type name(Type parameter) {`, of which there are many that are none. */
const TYPED =
  /^(\s*)(?!(?:else|return|new|throw|await|if|for|while|switch|catch|case|do|try|yield|guard|when|with|let|var|val|in)\b)(?:[\w<>[\],.?*&:]+\s+)+[*&]?(?<name>[\p{L}_$][\w$]*(?:::~?\w+)*)\s*\([^;]*\{\s*$/u;

/** @type {Pattern[]} */
export const PATTERNS = [
  {
    endings: [".swift"],
    patterns: [
      KEYWORD,
      new RegExp(`^(\\s*)${MODIFIERS}(?<name>init|deinit|subscript)\\b[?!]?\\s*[<({]`, "u"),
      new RegExp(`^(\\s*)${MODIFIERS}var\\s+(?<name>\\w+)\\s*:[^=]*\\{\\s*$`, "u"),
    ],
  },
  {
    endings: [".dart", ".groovy", ".gradle", ".vala", ".d", ".hx", ".v", ".sol", ".glsl", ".wgsl"],
    patterns: [KEYWORD, TYPED],
  },
  {
    endings: [".m", ".mm", ".h"],
    patterns: [
      /^(\s*)@(?:interface|implementation|protocol)\s+(?<name>\w+)/,
      /^([-+])\s*\([^)]*\)\s*(?<name>\w+)/,
      TYPED,
    ],
  },
  { endings: [".vue", ".svelte", ".astro", ".cr", ".gd", ".gleam", ".odin", ".move", ".cairo"], patterns: [KEYWORD] },
  {
    endings: [".vb", ".pas", ".f90", ".f95", ".ada", ".adb", ".awk", ".fish", ".tcl"],
    patterns: [new RegExp(KEYWORD, "iu")],
  },
  { endings: [".pl", ".pm", ".t"], patterns: [/^(\s*)(?:sub|package|class|method|role)\s+(?<name>[\w:]+)/] },
  {
    endings: [".r"],
    patterns: [/^(\s*)[`"]?(?<name>[\w.]+)[`"]?\s*(?:<-|=)\s*(?:function\b|\\\(|R6Class|setRefClass)/],
  },
  {
    endings: [".jl"],
    patterns: [
      /^(\s*)(?:@[\w.]+\s+)*(?:(?:mutable\s+)?struct|function|macro|module|abstract type|primitive type)\s+(?<name>[\w.!]+)/,
      /^()(?:@\w+\s+)?(?<name>[\p{L}_][\w.!]*)\([^=]*\)(?:\s*where\b[^=]*|\s*::[^=]*)?\s*=(?!=)/u,
    ],
  },
  {
    endings: [".clj", ".cljs", ".cljc", ".lisp", ".lsp", ".el", ".scm", ".ss", ".rkt", ".fnl"],
    patterns: [/^(\s*)\((?:[\w.]+\/)?(?:def|define|ns)[\w*!?-]*\s+(?:\^\S+\s+)*[(']?(?<name>[^\s()[\]"]+)/],
  },
  {
    endings: [".ml", ".mli", ".fs", ".fsi", ".fsx", ".re", ".res", ".elm", ".purs"],
    patterns: [
      /^(\s*)(?:static\s+|abstract\s+)?(?:let|and|val|module|type|class|member|exception|external|namespace|override|default|port)\s+(?:(?:rec|inline|mutable|private|public|internal|nonrec|virtual|type|alias|sig)\s+)*(?:'\w+\s+|\([^)]*\)\s*)?(?:\w+\.(?=\w))?(?<name>[\p{L}_][\w'.]*)/u,
    ],
  },
  {
    endings: [".erl", ".hrl"],
    patterns: [/^()(?<name>[a-z]\w*)\(/, /^()-(?:module|record|define|type|opaque)\(?\s*(?<name>\w+)/],
  },
  {
    endings: [".nim"],
    patterns: [
      /^(\s*)(?:proc|func|method|iterator|template|macro|converter)\s+(?<name>`[^`]+`|\w+)/,
      /^(\s*)(?<name>\w+)\*?(?:\[[^\]]*\])?\s*(?:\{\.[^}]*\.\}\s*)?=\s*(?:ref\s+|ptr\s+)?(?:object|enum|tuple|concept)\b/,
    ],
  },
  {
    endings: [".sql"],
    patterns: [
      /^(\s*)create\s+(?:(?:or\s+replace|temp|temporary|unique|materialized|recursive|unlogged|global)\s+)*(?:table|view|function|procedure|index|trigger|type|schema|sequence|domain|policy|role|database)\s+(?:concurrently\s+)?(?:if\s+not\s+exists\s+)?(?<name>["`[]?\w[\w."`\]]*)/i,
    ],
  },
  {
    endings: [".proto", ".thrift", ".capnp", ".fbs", ".avdl"],
    patterns: [
      /^(\s*)(?:message|service|enum|rpc|extend|struct|union|exception|table|interface|protocol|record)\s+(?<name>[\w.]+)/,
    ],
  },
  {
    endings: [".graphql", ".gql", ".graphqls", ".prisma"],
    patterns: [
      /^(\s*)(?:extend\s+)?(?:type|input|interface|enum|union|scalar|query|mutation|subscription|fragment|directive|model|datasource|generator)\s+@?(?<name>\w+)/,
    ],
  },
  {
    endings: [".tf", ".hcl"],
    patterns: [/^(\s*)(?:resource|data|variable|output|module|provider)\s+(?<name>"[^{]*")\s*\{/],
  },
  { endings: [".md", ".mdx", ".markdown", ".qmd"], patterns: [/^(#{1,6})\s+(?<name>.*\S)/], isText: true },
  { endings: [".adoc", ".asciidoc"], patterns: [/^(={1,6})\s+(?<name>.*\S)/], isText: true },
  { endings: [".rst"], patterns: [], isText: true },
  { endings: [".yml", ".yaml"], patterns: [/^()(?<name>["']?[\w$][\w .$/-]*["']?):(?:\s|$)/], isText: true },
  { endings: [".toml", ".ini", ".cfg", ".conf"], patterns: [/^()\[+(?<name>[^\]]+)\]/], isText: true },
];

/** For a grammar that is not installed, or does not understand a file. @type {Pattern} */
const ANY_LANGUAGE = { endings: [], patterns: [KEYWORD, TYPED] };
const BY_ENDING = new Map([
  ...LANGUAGES.flatMap(({ endings }) => endings.map((ending) => /** @type {const} */ ([ending, ANY_LANGUAGE]))),
  ...PATTERNS.flatMap((row) => row.endings.map((ending) => /** @type {const} */ ([ending, row]))),
]);

/** Lines that go with the declaration below: comments, attributes, and Erlang's types. */
const LEADING =
  /^\s*(?:\/\/|\/\*|\*|--|;|%|\(\*|@(?!end\b|interface\b|implementation\b|protocol\b)|\[<?\w|#\[|-(?:spec|doc)\b|#(?!\s*(?:if|ifdef|ifndef|else|elseif|elif|endif|define|include|import|pragma|error|region|endregion)\b))/;
const COMMENT_END = /(?:\*\/|\*\)|-->)\s*$/;
const COMMENT_START = /\/\*|\(\*|<!--/;
/** Lines; what ends further below is no comment of a declaration. */
const LONGEST_COMMENT = 300;
/** The first line of a comment of several. */
const OPEN_COMMENT = /^\s*(?:\/\*(?!.*\*\/)|\(\*\s(?!.*\*\)))/;
const FENCE = /^\s*(?:```|~~~)/;
/** Texts whose headings may be underlined, and that may begin with data between lines of dashes. */
const PROSE = new Set([".md", ".mdx", ".markdown", ".qmd", ".rst"]);
const UNDERLINE = /^([=\-~^"'`#*+.:_])\1{2,}\s*$/;
const TAB_WIDTH = 4;
const LONGEST_NAME = 80;
/** Keywords of what adds to something, but does not define it. */
const SCOPE = /\b(?:extension|impl|namespace|extend)\s/;

/**
 * @param {string} file
 * @returns {Pattern | undefined}
 */
function patternOf(file) {
  return BY_ENDING.get(path.extname(file).toLowerCase()) ?? BY_ENDING.get(path.basename(file));
}

/**
 * Whether a file is of a programming language.
 *
 * @param {string} file
 */
export function isCode(file) {
  const row = patternOf(file);
  return row !== undefined && row.isText !== true;
}

/**
 * @param {string} file name, whose ending tells what to look for
 * @param {string[]} lines
 * @returns {Declaration[]} in order
 */
export function declarationsIn(file, lines) {
  const ending = path.extname(file).toLowerCase();
  const row = patternOf(file);
  if (!row) return [];
  const isProse = PROSE.has(ending);
  /** @type {Declaration[]} */
  const found = [];
  /** Kinds of underlines, the one of the highest headings first. @type {string[]} */
  const underlines = [];
  let isFenced = false;
  let isComment = false;
  const first = isProse ? endOfFrontMatter(lines) : 0;
  for (const [number, line] of lines.entries()) {
    if (number < first) continue;
    if (row.isText && FENCE.test(line)) isFenced = !isFenced;
    if (isFenced) continue;
    if (!row.isText) {
      // Lines of a comment may begin with any word.
      const wasComment = isComment;
      isComment = isComment ? !COMMENT_END.test(line) : OPEN_COMMENT.test(line);
      if (isComment || wasComment) continue;
    }
    const heading = isProse ? underlined(lines, number, underlines) : undefined;
    const declaration = heading ?? matched(row, line);
    if (!declaration) continue;
    const start = row.isText && !/^\.ya?ml$/.test(ending) ? number : firstLeading(lines, number);
    found.push({ ...declaration, row: number, start });
  }
  return found;
}

/**
 * The row below the data between two lines of dashes that a text may begin with.
 *
 * @param {string[]} lines
 */
function endOfFrontMatter(lines) {
  return lines[0]?.trim() === "---" ? lines.findIndex((line, row) => row > 0 && line.trim() === "---") + 1 : 0;
}

/**
 * @param {Pattern} row
 * @param {string} line
 * @returns {Pick<Declaration, "name" | "level" | "kind"> | undefined}
 */
function matched({ patterns, isText }, line) {
  for (const pattern of patterns) {
    const match = pattern.exec(line);
    if (!match?.groups) continue;
    const name = `${match.groups.name}`
      .replace(/["'`[\]]/g, "")
      .replaceAll("::", ".")
      .trim();
    const level = isText ? `${match[1]}`.length : `${match[1]}`.replaceAll("\t", " ".repeat(TAB_WIDTH)).length;
    const isScope = SCOPE.test(line.slice(0, line.indexOf(`${match.groups.name}`)));
    const kind = isText ? "section" : isScope ? "scope" : "definition";
    return { name: name.replace(/\s+/g, " ").slice(0, LONGEST_NAME), level, kind };
  }
  return undefined;
}

/**
 * @param {string[]} lines
 * @param {number} row
 * @param {string[]} underlines kinds that were seen before
 * @returns {Pick<Declaration, "name" | "level" | "kind"> | undefined}
 */
function underlined(lines, row, underlines) {
  const title = `${lines[row]}`.trim();
  const sign = lines[row + 1]?.match(UNDERLINE)?.[1];
  const isHeading =
    sign !== undefined && /^[\p{L}\p{N}`:*"(]/u.test(title) && `${lines[row + 1]}`.trim().length >= title.length;
  if (!isHeading || title.length > 100) return undefined;
  if (!underlines.includes(sign)) underlines.push(sign);
  return {
    name: title.replace(/:\w+:|`/g, "").slice(0, LONGEST_NAME),
    level: underlines.indexOf(sign) + 1,
    kind: "section",
  };
}

/**
 * @param {string[]} lines
 * @param {number} row
 */
function firstLeading(lines, row) {
  let first = row;
  while (first > 0) {
    const above = `${lines[first - 1]}`;
    if (LEADING.test(above)) {
      first--;
    } else if (COMMENT_END.test(above)) {
      const highest = Math.max(0, first - LONGEST_COMMENT);
      let open = first - 1;
      while (open > highest && !COMMENT_START.test(`${lines[open]}`)) open--;
      if (!COMMENT_START.test(`${lines[open]}`)) return first;
      first = open;
    } else {
      return first;
    }
  }
  return first;
}
