/** Words, as full-text search sees them. */

const CAMEL_CASE = /(?<=[\p{Ll}\p{N}])(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll})/u;
/** Words of questions that say nothing about code. */
const STOP_WORDS = new Set(
  (
    "a all an and are as at be by can do does for from get happens has have how i if in into is it its of on or so that the their " +
    "them then there these they this to was what when where which who why with you"
  ).split(" "),
);

/**
 * The text and the parts of its compound names: "embedQuery" is also found as "embed query". FTS5 itself takes "_" as
 * the end of a word.
 *
 * @param {string} text
 */
export function searchableText(text) {
  const names = new Set(text.match(/[\p{L}\p{N}]+/gu));
  const parts = [...names].map((name) => name.split(CAMEL_CASE)).filter(({ length }) => length > 1);
  return [text, ...parts.flat()].join(" ");
}

/**
 * The words that a name is made of, in lower case.
 *
 * @param {string} name
 */
export function wordsOf(name) {
  const words = name.match(/[\p{L}\p{N}]+/gu)?.flatMap((part) => part.split(CAMEL_CASE)) ?? [];
  return [...new Set(words.map((word) => word.toLowerCase()))];
}

/** Words are of one family if they begin alike: "impl" and "implementations", "serializer" and "serialize". */
const FAMILY_CHARACTERS = 4;
const FAMILY_SHARE = 0.6;

/**
 * @param {string} a
 * @param {string} b
 */
export function areRelated(a, b) {
  if (a === b) return true;
  const shorter = Math.min(a.length, b.length);
  let common = 0;
  while (common < shorter && a[common] === b[common]) common++;
  return common >= FAMILY_CHARACTERS && common >= FAMILY_SHARE * shorter;
}

/**
 * The words of a question that are worth looking for, in lower case.
 *
 * @param {string} question
 */
export function searchWords(question) {
  const words = [
    ...new Set(
      searchableText(question)
        .toLowerCase()
        .match(/[\p{L}\p{N}]+/gu),
    ),
  ];
  const telling = words.filter((word) => !STOP_WORDS.has(word));
  return telling.length > 0 ? telling : words;
}
