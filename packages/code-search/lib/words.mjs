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
