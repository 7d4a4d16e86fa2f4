/**
 * How many tokens a model's tokenizer makes of a line, estimated from its characters: cutting a repository with the real
 * tokenizer would take longer than parsing it. The costs are averages of BERT's WordPiece vocabulary over source code in
 * ten languages, a little above them: a chunk that is too long loses its end. test/tokens.spec.mjs compares.
 */

/** Tokens of the letters between two changes of case, by their number; longer ones are cut into pieces. */
const WORD_COSTS = [0, 1, 1.1, 1.2, 1.18, 1.18, 1.18, 1.24, 1.32, 1.6, 1.75, 2.1, 2.3, 2.4, 2.6];
const LETTERS_PER_PIECE = 4;
/** A vocabulary knows `path` and `exists`, but not `##exists`. */
const INNER_WORD_COST = 0.55;
const DIGITS_PER_PIECE = 2;

/** Words of programming that a vocabulary made from books and an encyclopedia has in pieces only, by their number. */
const SPLIT_WORDS = new Map([
  ...`abort adapter addr alloc append arg args attr auth backend bool boolean buf callback cmake conn const constructor
    decode defaults delete dict docs elem elif emit encode endif endpoint enum env eq err errno exe expr ext
    extern fallback filename foreach formatter func getter goto handlers headers helper helpers hex href idx impl
    init initialize iter javascript json lib logger malloc markdown middleware mut mutable mutex namespace
    nested nil nullable num obj opts override padding param params parse parser pid plugin pos printf println
    refs recv regex repo req resp retry router runtime schema serialize setter sizeof stdio stringify stub sys timeout todo
    tokens tuple typedef typename typeof udp uint undefined url usize utf utils uuid validate vec wrapper yaml`
    .split(/\s+/)
    .map((word) => /** @type {const} */ ([word, 2])),
  ...`argv ascii async attrs config configure constexpr cursor debug decrypt deprecated deserialize destructor encoder
    encrypt eslint fprintf github identifier ifdef ifndef immutable iterator kwargs localhost memcpy memset nullptr pkg
    posix pytest readonly redirect snprintf sockaddr stdlib symlink stderr stdout strcmp strlen struct structs timestamp unsupported unwrap
    varchar websocket`
    .split(/\s+/)
    .map((word) => /** @type {const} */ ([word, 3])),
]);
const LONGEST_SPLIT_WORD = 12;
/** Letters without a vowel are an abbreviation, and hardly ever in a vocabulary. */
const VOWEL = /[aeiouy]/;
const ABBREVIATION_COST = 1.9;

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
        tokens += costOf(line, at - length, at - 1, UPPER, isInner);
        isInner = true;
        length = 2;
      } else {
        if (length > 0) tokens += costOf(line, at - length, at, previous, isInner);
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
 * @param {string} line
 * @param {number} start of letters or digits in it
 * @param {number} end exclusive
 * @param {number} kind
 * @param {boolean} isInner whether letters or digits stand right before
 */
function costOf(line, start, end, kind, isInner) {
  const length = end - start;
  const inner = isInner ? INNER_WORD_COST : 0;
  if (kind === DIGIT) return inner + (length <= 3 ? 1 : length / DIGITS_PER_PIECE + 0.2);
  const average = WORD_COSTS[length] ?? length / LETTERS_PER_PIECE;
  if (length === 1 || length > LONGEST_SPLIT_WORD) return inner + average;
  const word = line.slice(start, end).toLowerCase();
  return inner + (SPLIT_WORDS.get(word) ?? (VOWEL.test(word) ? average : Math.max(average, ABBREVIATION_COST)));
}
