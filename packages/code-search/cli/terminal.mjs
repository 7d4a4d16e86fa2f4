/** What is said to people. Names of files and lines of source code may hold characters that a terminal obeys. */

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what this is about.
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/**
 * The text with its control characters written as JSON writes them, so that JSON stays what it is.
 *
 * @param {string} text
 */
export function printable(text) {
  const escaped = (/** @type {string} */ character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return text.replace(/\r$/gm, "").replace(CONTROLS, escaped);
}

/**
 * As `printable`, with line feeds written out: names may hold these too.
 *
 * @param {string} text
 */
export function onOneLine(text) {
  return printable(text).replaceAll("\n", "\\n");
}

/** @param {string} text to standard output */
export function print(text = "") {
  process.stdout.write(`${printable(text)}\n`);
}

/** @param {string} text to standard error */
export function complain(text) {
  process.stderr.write(`${printable(text)}\n`);
}

/**
 * `"1,234"` in any locale: output must not depend on the machine.
 *
 * @param {number} count
 */
export function grouped(count) {
  return count.toLocaleString("en-US");
}

/**
 * What a terminal that standard output leads to is good for.
 *
 * @typedef {{ hasColors: boolean, hasLinks: boolean }} Abilities
 * @param {{ color: boolean }} flags
 * @param {{ isTTY?: boolean }} [stream]
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Abilities}
 */
export function abilities({ color }, { isTTY = false } = process.stdout, env = process.env) {
  const isTerminal = isTTY && env.TERM !== "dumb";
  return { hasColors: isTerminal && color && !env.NO_COLOR, hasLinks: isTerminal };
}
