/** A small line-based cutter of source files into functions, for the demo. It goes by indentation and knows no grammar. */

import { readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";

const BRACES = {
  ".rs": /^\s*(pub(\([a-z]+\))? )?(const |async |unsafe )*fn \w+/,
  ".ts":
    /^\s*(export )?(async )?function\*? \w+|^\s+((static|async|get|set) )*(?!(if|for|while|switch|catch|return)\b)[\w#[\].]+\(.*\{$/,
};
BRACES[".mjs"] = BRACES[".ts"];
const PYTHON = /^\s*(async )?def \w+/;
const SKIPPED_FOLDERS = /^(node_modules|site-packages|dist|target|\..*)$/;

/**
 * The functions of all Rust, TypeScript, JavaScript and Python files below a folder.
 *
 * @param {string} root
 * @returns {{ file: string, line: number, text: string }[]} line counts from 1
 */
export function functionsBelow(root) {
  return sourceFiles(root).flatMap((file) =>
    functionsOf(readFileSync(path.join(root, file), "utf8"), path.extname(file)).map((found) => ({ file, ...found })),
  );
}

function sourceFiles(root, folder = "") {
  const entries = readdirSync(path.join(root, folder), { withFileTypes: true });
  return entries
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const name = path.posix.join(folder, entry.name);
      if (entry.isDirectory()) return SKIPPED_FOLDERS.test(entry.name) ? [] : sourceFiles(root, name);
      return path.extname(name) in BRACES || name.endsWith(".py") ? [name] : [];
    });
}

/** @param {string} extension with its dot */
export function functionsOf(source, extension) {
  const lines = source.split("\n");
  const isPython = extension === ".py";
  const start = isPython ? PYTHON : BRACES[extension];
  const functions = [];
  for (let index = 0; index < lines.length; index++) {
    if (!start.test(lines[index])) continue;
    const end = isPython ? endOfBlock(lines, index) : endOfBraces(lines, index);
    const first = firstCommentLine(lines, index);
    functions.push({ line: index + 1, text: lines.slice(first, end + 1).join("\n") });
    // Functions inside a function belong to it.
    index = end;
  }
  return functions;
}

/** The closing brace stands where the first line begins; a one-liner ends on its own line. */
function endOfBraces(lines, start) {
  const indent = indentation(lines[start]);
  if (/[;}]$/.test(lines[start])) return start;
  for (let index = start + 1; index < lines.length; index++) {
    if (/^\s*(}|\).*;$)/.test(lines[index]) && indentation(lines[index]) <= indent) return index;
  }
  return lines.length - 1;
}

/** A Python block goes on as long as lines are deeper; a signature over several lines closes with a bracket. */
function endOfBlock(lines, start) {
  const indent = indentation(lines[start]);
  let end = start;
  for (let index = start + 1; index < lines.length; index++) {
    if (lines[index].trim() === "") continue;
    if (indentation(lines[index]) <= indent && !/^\s*[)\]]/.test(lines[index])) break;
    end = index;
  }
  return end;
}

/** Doc comments, attributes and decorators right above a function describe it. */
function firstCommentLine(lines, start) {
  let first = start;
  while (first > 0 && /^\s*(\/\/|\/\*\*|\*|#\[|#|@)/.test(lines[first - 1])) first--;
  return first;
}

function indentation(line) {
  return line.length - line.trimStart().length;
}
