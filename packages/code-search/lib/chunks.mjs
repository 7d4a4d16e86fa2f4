/**
 * Cuts source files into the pieces that are embedded: a function, method, type or class each, with the comment above
 * it. A definition that is too long is cut between its members or statements; what stands between definitions is
 * gathered. So each line with text is in exactly one chunk. Files without definitions are cut into overlapping windows.
 */

import { declarationsIn, isCode } from "./declarations.mjs";
import { parse } from "./grammars.mjs";
import { definitionOf, isLeading, languageOf, parserFor } from "./languages.mjs";
import { estimateTokens } from "./tokens.mjs";

/** @typedef {import("web-tree-sitter").Node} Node */
/** @typedef {import("./declarations.mjs").Declaration} Declaration */
/** @typedef {import("./languages.mjs").Language} Language */
/**
 * @typedef {object} Chunk
 * @property {string} name what is defined, with the names around it; empty for code outside of definitions
 * @property {boolean} isDefinition whether the definition of that name begins here; false for later parts of a long one,
 * and for what only stands in it
 * @property {number} line line of the definition, below its comment; counts from 1
 * @property {number} startLine
 * @property {number} endLine inclusive
 * @property {string} text
 */
/**
 * Neighbouring rows of a file.
 *
 * @typedef {object} Span
 * @property {number} start counts from 0
 * @property {number} end inclusive
 * @property {number} line of the definition
 * @property {string} owner name
 * @property {boolean} isDefinition
 * @property {boolean} isWhole whether it is all of a definition: nothing else joins it
 * @property {number} [share] tokens that a part of it should have
 * @property {string} [section] name of what is around a section of a text, whose small neighbours join it
 */

/** Goes up whenever other chunks come out: an index made before is then made anew. */
export const CHUNKER_VERSION = 3;

/** Tokens that models put around a text, and the words with which some of them want it introduced. */
const RESERVED_TOKENS = 6;
/** Tokens are estimated: more than that many times as many are rare, in code and in other texts (names, addresses, hashes). */
const CODE_MARGIN = 1.05;
const TEXT_MARGIN = 1.15;
/** What exceeds that by a line or two is whole rather than in two chunks. */
const TOLERANCE = 1.04;
/** However long path and name are, this part of the limit is left to the code. */
const LEAST_ROOM = 0.5;
/** Windows overlap by this part of their length, so that what one cuts apart is whole in the other. */
const OVERLAP = 0.2;
/** A parser that understands less than this part of a file is not followed. */
const UNDERSTOOD = 0.9;
/** What is no longer than the opening of a class or a field of it goes with the member below. */
const OPENING_TOKENS = 24;
/** What is cut off from a long comment is at least that part of the limit, or half of the comment. */
const LEAST_PART = 0.25;
/** Parts of a long function may be that much longer than all of one size would be. */
const SHARE = 1.15;
/** Sections of a text are joined up to this part of the limit. */
const SECTIONS = 0.5;
/** Lines that only end what is above, where that takes a word. */
const CLOSING = /^\s*(?:end|fi|done|esac|@end|#\s*endif\b.*)\W*$/;
/** Of a preprocessor. */
const CONDITION = /^\s*#\s*(?:if|ifdef|ifndef|else|elif|elseif)\b/;
/** Syntax trees of generated code can be deeper than the stack. */
const MAX_DEPTH = 200;

/**
 * @param {string} file path that `embeddedText` will be given; its ending tells the language
 * @param {string} source
 * @param {number} maxTokens of the model, which cuts off what is longer
 * @returns {Promise<Chunk[]>}
 */
export async function chunkFile(file, source, maxTokens) {
  const text = new Text(file, source, maxTokens);
  const language = languageOf(file, source);
  const parser = await parserFor(file, source);
  const tree = parser && parse(parser, source);
  try {
    if (language && tree && isUnderstood(tree.rootNode, language, source))
      return text.syntaxChunks(tree.rootNode, language);
  } finally {
    tree?.delete();
  }
  const declarations = declarationsIn(file, text.lines);
  return declarations.length > 0 ? text.declarationChunks(declarations) : text.windows(OVERLAP);
}

/**
 * What a model is given of a chunk: where it stands says what it is about.
 *
 * @param {string} file path
 * @param {Pick<Chunk, "name" | "text">} chunk
 */
export function embeddedText(file, { name, text }) {
  return [file, name, text].filter(Boolean).join("\n");
}

/**
 * @param {Node} root
 * @param {Language} language
 * @param {string} source
 */
function isUnderstood(root, language, source) {
  if (!root.hasError || language.hasMacros) return true;
  const lost = root
    .descendantsOfType("ERROR")
    .reduce((sum, node) => sum + (node ? node.endIndex - node.startIndex : 0), 0);
  return root.type !== "ERROR" && lost <= (1 - UNDERSTOOD) * source.length;
}

class Text {
  /**
   * @param {string} file
   * @param {string} source
   * @param {number} maxTokens
   */
  constructor(file, source, maxTokens) {
    this.lines = source.split(/\r?\n/);
    this.maxTokens = maxTokens;
    this.margin = isCode(file) ? CODE_MARGIN : TEXT_MARGIN;
    /** Tokens of a chunk that has no name. */
    this.limit = (maxTokens - RESERVED_TOKENS) / this.margin - estimateTokens(file);
    /** Tokens before each row. */
    this.offsets = new Float64Array(this.lines.length + 1);
    /** Rows before each that say something. */
    this.worded = new Uint32Array(this.lines.length + 1);
    for (const [row, line] of this.lines.entries()) {
      this.offsets[row + 1] = this.before(row) + estimateTokens(line);
      this.worded[row + 1] = Number(this.worded[row]) + (hasWords(line) ? 1 : 0);
    }
  }

  /** @param {number} row */
  before(row) {
    return Number(this.offsets[row]);
  }

  /**
   * Tokens, about.
   *
   * @param {number} start
   * @param {number} end
   */
  size(start, end) {
    return this.before(end + 1) - this.before(start);
  }

  /**
   * Tokens that the code of a chunk may have.
   *
   * @param {string} name
   */
  room(name) {
    return Math.max(this.limit - estimateTokens(name), LEAST_ROOM * this.maxTokens);
  }

  /**
   * Tokens that a chunk may have before it is cut.
   *
   * @param {string} name
   * @param {boolean} isDefinition
   */
  most(name, isDefinition) {
    return (isDefinition ? TOLERANCE : 1) * this.room(name);
  }

  /**
   * @param {number} start
   * @param {number} end
   * @param {string} name
   */
  fits(start, end, name) {
    return this.size(start, end) <= this.room(name);
  }

  /**
   * @param {Node} root
   * @param {Language} language
   */
  syntaxChunks(root, language) {
    return this.chunksOf(this.atoms(root, language, "", 0));
  }

  /** @param {Declaration[]} declarations */
  declarationChunks(declarations) {
    return this.chunksOf(this.sections(declarations, 0, this.lines.length - 1, ""));
  }

  /** @param {Iterable<Span>} atoms */
  chunksOf(atoms) {
    /** @type {Span[]} */
    const spans = [];
    for (const atom of atoms) this.append(spans, atom);
    if (spans.length === 0) return this.windows(0);
    return this.withoutGaps(spans).flatMap((span) => this.cut(span, 0));
  }

  /**
   * The smallest pieces that are not cut further, in order: definitions and statements that fit, and what holds those
   * together that do not.
   *
   * @param {Node} parent
   * @param {Language} language
   * @param {string} owner name of the definition around
   * @param {number} depth
   * @param {number} [share] tokens that the parts of the definition around should have
   * @returns {Generator<Span>}
   */
  *atoms(parent, language, owner, depth, share = Number.POSITIVE_INFINITY) {
    const other = { owner, isDefinition: false, isWhole: false, share };
    /** @type {Span | undefined} comments and attributes, which wait for what they belong to */
    let leading;
    let before = -1;
    for (const child of childrenOf(parent, language)) {
      const line = child.startPosition.row;
      const end = lastRow(child);
      if (line > before && isLeading(child, language)) {
        if (leading && line > leading.end + 1) yield leading;
        const isNext = leading && line <= leading.end + 1;
        leading = { ...other, start: isNext && leading ? leading.start : line, end, line };
        if (isNext) leading.line = leading.start;
        before = end;
        continue;
      }
      before = end;
      // One-liners inside of a definition are no more than statements of it, unless they have a comment.
      const isTop = depth === 0;
      const isLong = line < end || leading?.end === line - 1;
      const definition = isLong || isTop ? definitionOf(child, language, isTop && line < end) : undefined;
      let start = line;
      if (leading && isAbove(leading, line, definition !== undefined)) start = leading.start;
      else if (leading) yield leading;
      leading = undefined;
      const name = [owner, definition?.name].filter(Boolean).join(".");
      const isDefinition = definition?.kind === "definition";
      // A comment that is too long is cut off before the definition is cut.
      if (this.size(line, end) <= this.most(name, isDefinition) || child.childCount === 0 || depth === MAX_DEPTH) {
        const section = definition?.kind === "section" ? owner : undefined;
        const row = definition?.row ?? line;
        yield { start, end, line: row, owner: name, isDefinition, isWhole: isDefinition, section, share };
        continue;
      }
      let isFirst = true;
      const part = definition ? this.share(start, end, this.room(name)) : share;
      for (const atom of this.atoms(definition?.node ?? child, language, name, depth + 1, part)) {
        // Annotations that are in front of the name.
        if (isDefinition && atom.end < definition.row) continue;
        if (!isFirst) yield atom;
        else if (isDefinition && !atom.isDefinition) yield { ...atom, start, line: definition.row, isDefinition };
        else yield { ...atom, start: Math.min(start, atom.start) };
        isFirst = false;
      }
    }
    if (leading) yield leading;
  }

  /**
   * The same for declarations that were found without a parser: each goes on to the next one of its level.
   *
   * @param {Declaration[]} declarations between `start` and `last`, at least one
   * @param {number} start
   * @param {number} last
   * @param {string} owner
   * @returns {Generator<Span>}
   */
  *sections(declarations, start, last, owner) {
    const level = declarations.reduce(
      (least, declaration) => Math.min(least, declaration.level),
      Number.POSITIVE_INFINITY,
    );
    const heads = [...declarations.entries()].filter(([, declaration]) => declaration.level === level);
    if (!heads[0]) return;
    const [before, first] = heads[0];
    const other = { line: start, owner, isDefinition: false, isWhole: false };
    const end = first.start - 1;
    if (before > 0) yield* this.sections(declarations.slice(0, before), start, end, owner);
    else if (end >= start) yield { ...other, start, end };
    for (const [number, [index, head]] of heads.entries()) {
      const [nextIndex, next] = heads[number + 1] ?? [declarations.length, undefined];
      yield* this.section(head, declarations.slice(index + 1, nextIndex), next ? next.start - 1 : last, owner);
    }
  }

  /**
   * @param {Declaration} head
   * @param {Declaration[]} inner
   * @param {number} end
   * @param {string} owner
   * @returns {Generator<Span>}
   */
  *section({ name, kind, start, row }, inner, end, owner) {
    // Inside of a type, one-liners are no more than fields of it.
    const isLine = owner !== "" && kind === "definition" && !this.hasWords(row + 1, end);
    const isDefinition = kind === "definition" && !isLine;
    const full = isLine ? owner : [owner, name].filter(Boolean).join(".");
    const whole = { start, end, line: row, owner: full, isDefinition, isWhole: isDefinition };
    if (inner.length === 0 || this.size(row, end) <= this.most(full, isDefinition)) {
      yield { ...whole, section: kind === "section" ? owner : undefined };
      return;
    }
    let isFirst = true;
    for (const atom of this.sections(inner, start, end, full)) {
      yield isFirst ? { ...whole, end: atom.end, isWhole: false } : atom;
      isFirst = false;
    }
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
    } else if (atom.start <= last.end || !this.hasWords(atom.start, atom.end)) {
      // On the same line, or a closing brace.
      last.end = Math.max(last.end, atom.end);
    } else if (this.isContinued(last, atom)) {
      last.end = atom.end;
    } else if (this.areSmallSections(last, atom)) {
      last.end = atom.end;
      last.owner = `${last.section}`;
    } else if (this.isOpening(last, atom)) {
      spans[spans.length - 1] = { ...atom, start: last.start };
    } else {
      spans.push(atom);
    }
  }

  /**
   * Statements of one function or fields of one class; clauses or overloads of one function.
   *
   * @param {Span} last
   * @param {Span} atom
   */
  isContinued(last, atom) {
    if (atom.owner !== last.owner || !this.fits(last.start, atom.end, last.owner)) return false;
    if (last.isWhole) return atom.isWhole;
    return !atom.isDefinition && this.size(last.start, atom.end) <= (last.share ?? Number.POSITIVE_INFINITY);
  }

  /**
   * @param {Span} last
   * @param {Span} atom
   */
  areSmallSections(last, atom) {
    return (
      last.section !== undefined &&
      last.section === atom.section &&
      this.size(last.start, atom.end) <= SECTIONS * this.room(last.owner)
    );
  }

  /**
   * Whether what precedes a member is too little for a chunk. The opening of a definition is not: it is what is found by
   * the definition's name.
   *
   * @param {Span} last
   * @param {Span} atom
   */
  isOpening(last, atom) {
    const isInside = last.owner !== "" && atom.owner.startsWith(`${last.owner}.`);
    return (
      (isInside || (last.start === last.end && CONDITION.test(`${this.lines[last.start]}`))) &&
      (!last.isDefinition || (atom.isDefinition && !atom.isWhole)) &&
      this.size(last.start, last.end) <= OPENING_TOKENS &&
      this.fits(last.start, atom.end, atom.owner)
    );
  }

  /**
   * Gives lines that are in no span to the span below.
   *
   * @param {Span[]} spans
   */
  withoutGaps(spans) {
    let next = 0;
    for (const span of spans) {
      while (next < span.start && this.isBlank(next)) next++;
      span.start = Math.min(next, span.start);
      next = span.end + 1;
    }
    const last = spans.at(-1);
    if (last) last.end = this.lines.length - 1;
    return spans;
  }

  /** @param {number} overlap part of a window */
  windows(overlap) {
    const whole = { start: 0, end: this.lines.length - 1, line: 0, owner: "", isDefinition: false, isWhole: false };
    return this.cut(whole, overlap);
  }

  /**
   * The chunks of a span: one, or windows of it where no syntax has cut it (a long comment or string).
   *
   * @param {Span} span
   * @param {number} overlap
   * @returns {Chunk[]}
   */
  cut({ start, end, line, owner, isDefinition }, overlap) {
    const room = this.room(owner);
    const most = this.most(owner, isDefinition);
    const first = this.size(line, end) <= most ? this.firstKept(start, line, end, most) : start;
    const rows = [
      ...this.windowsOf(start, first - 1, room, 0),
      ...this.windowsOf(first, end, this.size(first, end) <= most ? most : room, overlap),
    ];
    return rows.map(([from, to]) => {
      const hasLine = from <= line && line <= to;
      return {
        name: owner,
        isDefinition: isDefinition && hasLine,
        line: (hasLine ? line : from) + 1,
        startLine: from + 1,
        endLine: to + 1,
        text: this.text(from, to),
      };
    });
  }

  /**
   * A definition keeps as much of its comment as there is room for, as long as what is cut off is worth a chunk.
   *
   * @param {number} start
   * @param {number} line of the definition
   * @param {number} end
   * @param {number} most tokens
   */
  firstKept(start, line, end, most) {
    if (this.size(start, end) <= most) return start;
    let first = start;
    while (this.size(first, end) > most) first++;
    const least = Math.min(LEAST_PART * most, this.size(start, line - 1) / 2);
    while (first < line && this.size(start, first - 1) < least) first++;
    return first;
  }

  /**
   * First and last rows of windows, of about one size where they do not overlap.
   *
   * @param {number} start
   * @param {number} end
   * @param {number} room
   * @param {number} overlap
   * @returns {Generator<[number, number]>}
   */
  *windowsOf(start, end, room, overlap) {
    let last = end;
    while (last >= start && this.isBlank(last)) last--;
    let from = start;
    while (true) {
      while (from <= last && this.isBlank(from)) from++;
      if (from > last) return;
      const size = overlap > 0 ? room : this.share(from, last, room);
      let to = from;
      while (to < last && (this.size(from, to + 1) <= size || !this.hasWords(from, to))) to++;
      yield [from, to];
      if (to === last) return;
      let next = to + 1;
      while (next - 1 > from && this.size(next - 1, to) <= overlap * room) next--;
      from = next;
    }
  }

  /**
   * Tokens that each part of something too long should have, so that the last one is none of a few words.
   *
   * @param {number} start
   * @param {number} end
   * @param {number} room
   */
  share(start, end, room) {
    const size = this.size(start, end);
    return Math.min(room, (SHARE * size) / Math.ceil(size / room));
  }

  /**
   * @param {number} start
   * @param {number} end
   */
  text(start, end) {
    return this.lines.slice(start, end + 1).join("\n");
  }

  /** @param {number} row */
  isBlank(row) {
    return this.lines[row]?.trim() === "";
  }

  /**
   * @param {number} start
   * @param {number} end
   */
  hasWords(start, end) {
    return Number(this.worded[end + 1]) > Number(this.worded[start]);
  }
}

/**
 * Whether a line does more than to end what is above.
 *
 * @param {string} line
 */
function hasWords(line) {
  return /[\p{L}\p{N}]/u.test(line) && !CLOSING.test(line);
}

/**
 * Whether a comment goes with what is below it. Between a comment and a definition there may be an empty line, but not
 * below the one that heads the file.
 *
 * @param {Span} comment
 * @param {number} line
 * @param {boolean} isDefinition
 */
function isAbove({ start, end }, line, isDefinition) {
  return line <= end + (isDefinition && start > 0 ? 2 : 1);
}

/**
 * The children of a node, those of transparent ones in their place.
 *
 * @param {Node} parent
 * @param {Language} language
 * @param {number} [depth]
 * @returns {Node[]}
 */
function childrenOf(parent, language, depth = 0) {
  const children = parent.children.filter((child) => child !== null);
  if (!language.transparent || depth === MAX_DEPTH) return children;
  return children.flatMap((child) =>
    language.transparent?.includes(child.type) ? childrenOf(child, language, depth + 1) : [child],
  );
}

/**
 * Some nodes end with their line break, at the start of the next row.
 *
 * @param {Node} node
 */
function lastRow({ startPosition, endPosition }) {
  return endPosition.column === 0 && endPosition.row > startPosition.row ? endPosition.row - 1 : endPosition.row;
}
