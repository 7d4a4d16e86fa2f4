/**
 * Cuts source files into the pieces that are embedded: a function, method, type or class each, with the comment above
 * it. A definition that is too long is cut between its members or statements; what stands between definitions is
 * gathered. So each line with text is in exactly one chunk. Files without a grammar are cut into overlapping windows.
 */

import { definitionOf, isLeading, parserFor } from "./languages.mjs";

/** @typedef {import("web-tree-sitter").Node} Node */
/**
 * @typedef {object} Chunk
 * @property {string} name what is defined, with the names around it; empty for code outside of definitions
 * @property {number} line line of the definition, below its comment; counts from 1
 * @property {number} startLine
 * @property {number} endLine inclusive
 * @property {string} text
 */
/**
 * Neighbouring rows of a file, counted from 0, `end` inclusive.
 *
 * @typedef {{ start: number, end: number, line: number, owner: string, isDefinition: boolean }} Span
 */

/** Goes up whenever other chunks come out: an index made before is then made anew. */
export const CHUNKER_VERSION = 1;

/** Tokens are two to four characters long in code, indentation left aside. */
const CHARACTERS_PER_TOKEN = 2.5;
/** Windows overlap by this part of their length, so that what one cuts apart is whole in the other. */
const OVERLAP = 0.2;
/** A parser that understands less than this part of a file is not followed. */
const UNDERSTOOD = 0.9;
/** The opening of a class or impl goes with its first member if it has no more words than this. */
const OPENING_WORDS = 12;
/** What exceeds the limit by a few lines is not worth a chunk of its own. */
const TOLERANCE = 1.25;
/** Syntax trees of generated code can be deeper than the stack. */
const MAX_DEPTH = 200;

/**
 * @param {string} file name, whose ending tells the language
 * @param {string} source
 * @param {number} maxTokens length to aim at; the model would cut off what is longer
 * @returns {Promise<Chunk[]>}
 */
export async function chunkFile(file, source, maxTokens) {
  const text = new Text(source, maxTokens * CHARACTERS_PER_TOKEN);
  const tree = (await parserFor(file))?.parse(source);
  if (!tree) return text.windows(OVERLAP);
  try {
    return isUnderstood(tree.rootNode, source) ? text.syntaxChunks(tree.rootNode) : text.windows(OVERLAP);
  } finally {
    tree.delete();
  }
}

/**
 * @param {Node} root
 * @param {string} source
 */
function isUnderstood(root, source) {
  if (!root.hasError) return true;
  const lost = root
    .descendantsOfType("ERROR")
    .reduce((sum, node) => sum + (node ? node.endIndex - node.startIndex : 0), 0);
  return root.type !== "ERROR" && lost <= (1 - UNDERSTOOD) * source.length;
}

class Text {
  /**
   * @param {string} source
   * @param {number} limit characters of a chunk, indentation left aside
   */
  constructor(source, limit) {
    this.lines = source.split(/\r?\n/);
    this.limit = limit;
    /** Characters before each row. */
    this.offsets = [0];
    let offset = 0;
    for (const line of this.lines) {
      offset += line.trim().length + 1;
      this.offsets.push(offset);
    }
  }

  /**
   * @param {number} start
   * @param {number} end
   */
  size(start, end) {
    return Number(this.offsets[end + 1]) - Number(this.offsets[start]);
  }

  /** @param {Node} root */
  syntaxChunks(root) {
    /** @type {Span[]} */
    const spans = [];
    for (const atom of this.atoms(root, "", 0)) this.append(spans, atom);
    return this.withoutGaps(spans).flatMap((span) => this.cut(span, 0));
  }

  /**
   * The smallest pieces that are not cut further, in order: definitions and statements that fit, and what holds those
   * together that do not.
   *
   * @param {Node} parent
   * @param {string} owner name of the definition around
   * @param {number} depth
   * @returns {Generator<Span>}
   */
  *atoms(parent, owner, depth) {
    /** @type {Span | undefined} comments and attributes, which wait for what they belong to */
    let leading;
    let before = -1;
    for (const child of parent.children) {
      if (!child) continue;
      const line = child.startPosition.row;
      const end = lastRow(child);
      if (isLeading(child) && line > before) {
        if (leading && line > leading.end + 1) yield leading;
        const isNext = leading && line <= leading.end + 1;
        leading = { start: isNext && leading ? leading.start : line, end, line, owner, isDefinition: false };
        if (isNext) leading.line = leading.start;
        continue;
      }
      before = end;
      let start = line;
      if (leading && leading.end + 1 >= line) start = leading.start;
      else if (leading) yield leading;
      leading = undefined;
      // One-liners inside of a definition are no more than statements of it.
      const definition = start < end || depth === 0 ? definitionOf(child) : undefined;
      const name = definition ? [owner, definition.name].filter(Boolean).join(".") : owner;
      if (this.size(start, end) <= this.limit || child.childCount === 0 || depth === MAX_DEPTH) {
        yield { start, end, line, owner: name, isDefinition: definition !== undefined };
        continue;
      }
      for (const atom of this.atoms(definition?.node ?? child, name, depth + 1)) {
        yield { ...atom, start: Math.min(start, atom.start) };
        start = Number.POSITIVE_INFINITY;
      }
    }
    if (leading) yield leading;
  }

  /**
   * Joins an atom with the last span or begins a new one.
   *
   * @param {Span[]} spans
   * @param {Span} atom
   */
  append(spans, atom) {
    const last = spans.at(-1);
    if (!last) {
      spans.push(atom);
    } else if (atom.start <= last.end || this.words(atom.start, atom.end) === 0) {
      // On the same line, or a closing brace.
      last.end = Math.max(last.end, atom.end);
    } else if (last.isDefinition) {
      spans.push(atom);
    } else if (atom.owner === last.owner && !atom.isDefinition && this.size(last.start, atom.end) <= this.limit) {
      last.end = atom.end;
    } else if (
      last.owner !== "" &&
      atom.owner.startsWith(`${last.owner}.`) &&
      this.words(last.start, last.end) <= OPENING_WORDS &&
      this.size(last.start, atom.end) <= TOLERANCE * this.limit
    ) {
      spans[spans.length - 1] = { ...atom, start: last.start };
    } else {
      spans.push(atom);
    }
  }

  /**
   * Gives lines that are in no span to the span below.
   *
   * @param {Span[]} spans
   */
  withoutGaps(spans) {
    let next = 0;
    for (const span of spans) {
      while (next < span.start && this.lines[next]?.trim() === "") next++;
      span.start = Math.min(next, span.start);
      next = span.end + 1;
    }
    const last = spans.at(-1);
    if (last) last.end = this.lines.length - 1;
    return spans;
  }

  /** @param {number} overlap part of a window */
  windows(overlap) {
    return this.cut({ start: 0, end: this.lines.length - 1, line: 0, owner: "", isDefinition: false }, overlap);
  }

  /**
   * The chunks of a span: one, or windows of it where no syntax has cut it (a long comment or string).
   *
   * @param {Span} span
   * @param {number} overlap
   * @returns {Chunk[]}
   */
  cut(span, overlap) {
    const isBlank = (/** @type {number} */ row) => this.lines[row]?.trim() === "";
    let { start, end: last } = span;
    while (last >= start && isBlank(last)) last--;
    const chunks = [];
    while (true) {
      while (start <= last && isBlank(start)) start++;
      if (start > last) return chunks;
      let end = start;
      if (this.size(start, last) <= TOLERANCE * this.limit) end = last;
      while (end < last && (this.size(start, end + 1) <= this.limit || this.words(start, end) === 0)) end++;
      const line = Math.min(Math.max(start, span.line), end) + 1;
      chunks.push({ name: span.owner, line, startLine: start + 1, endLine: end + 1, text: this.text(start, end) });
      if (end === last) return chunks;
      let next = end + 1;
      while (next - 1 > start && this.size(next - 1, end) <= overlap * this.limit) next--;
      start = next;
    }
  }

  /**
   * @param {number} start
   * @param {number} end
   */
  text(start, end) {
    return this.lines.slice(start, end + 1).join("\n");
  }

  /**
   * @param {number} start
   * @param {number} end
   */
  words(start, end) {
    return this.text(start, end).match(/[\p{L}\p{N}]+/gu)?.length ?? 0;
  }
}

/**
 * Some nodes end with their line break, at the start of the next row.
 *
 * @param {Node} node
 */
function lastRow({ startPosition, endPosition }) {
  return endPosition.column === 0 && endPosition.row > startPosition.row ? endPosition.row - 1 : endPosition.row;
}
