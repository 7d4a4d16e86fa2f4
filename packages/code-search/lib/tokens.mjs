/**
 * How many tokens a model's tokenizer makes of a line, estimated from its characters: cutting a repository with the real
 * tokenizer would take longer than parsing it. The costs are averages of BERT's WordPiece vocabulary over source code in
 * twelve languages (test/tokens.spec.mjs compares), a little above them: a chunk that is too long loses its end.
 */

/** Tokens of the letters between two changes of case, by their number; longer ones are cut into pieces. */
const WORD_COSTS = [0, 1.02, 1.1, 1.24, 1.2, 1.28, 1.28, 1.34, 1.4, 1.6, 1.75, 2];
const LETTERS_PER_PIECE = 4.5;
/** A vocabulary knows `path` and `exists`, but not `##exists`. */
const INNER_WORD_COST = 0.45;
const DIGITS_PER_PIECE = 2;

const SPACE = 0;
const SIGN = 1;
const LOWER = 2;
const UPPER = 3;
const DIGIT = 4;

/** Kind of each character up to Latin Extended-B; what is above is a token by itself. */
const KINDS = Uint8Array.from({ length: 0x250 }, (_, code) => {
  const character = String.fromCharCode(code);
  if (code <= 0x20 || code === 0x7f || code === 0xa0) return SPACE;
  if (/\d/.test(character)) return DIGIT;
  if (/\p{Lu}/u.test(character)) return UPPER;
  return /\p{L}/u.test(character) ? LOWER : SIGN;
});

/** @param {string} line */
export function estimateTokens(line) {
  let tokens = 0;
  let previous = SPACE;
  /** Letters or digits since the last boundary. */
  let length = 0;
  let isInner = false;
  for (let at = 0; at <= line.length; at++) {
    const kind = at < line.length ? (KINDS[line.charCodeAt(at)] ?? SIGN) : SPACE;
    // `Word` goes on after its capital, `HTTPServer` does not.
    const goesOn = length > 0 && (kind === previous || (kind === LOWER && previous === UPPER && length === 1));
    if (kind >= LOWER && goesOn) {
      length++;
    } else {
      if (kind === LOWER && previous === UPPER && length > 1) {
        tokens += costOf(length - 1, UPPER, isInner);
        isInner = true;
        length = 2;
      } else {
        if (length > 0) tokens += costOf(length, previous, isInner);
        isInner = previous >= LOWER && kind >= LOWER;
        length = kind >= LOWER ? 1 : 0;
      }
      if (kind === SIGN) tokens++;
    }
    previous = kind;
  }
  return tokens;
}

/**
 * @param {number} length
 * @param {number} kind
 * @param {boolean} isInner whether letters or digits stand right before
 */
function costOf(length, kind, isInner) {
  const inner = isInner ? INNER_WORD_COST : 0;
  if (kind === DIGIT) return inner + (length <= 3 ? 1 : length / DIGITS_PER_PIECE + 0.2);
  return inner + (WORD_COSTS[length] ?? length / LETTERS_PER_PIECE);
}
