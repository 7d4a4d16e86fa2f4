import { searchWords } from "../lib/words.mjs";
import { usage } from "./failure.mjs";
import { addLimitOptions, printHits } from "./hits.mjs";
import { addModelOptions, updateIfFree, withCodeSearch } from "./opening.mjs";

const HELP = `
Needs no index made before: new and changed files are read first. Chunks without an exact vector are found by their words
and by a faster, coarser vector; how many these are is said on standard error.

Examples:
  $ code-search search "where are tokens validated?"
  $ code-search search parseDate ~/my-project --limit 3
  $ code-search search "retry after a timeout" --json | jq -r '.hits[] | "\\(.path):\\(.line)"'`;

/** @param {import("commander").Command} program */
export function addSearch(program) {
  const command = program
    .command("search")
    .description("find code that answers a question")
    .argument("<question>", "what is looked for: a question, a description, words or a name")
    .argument("[dir]", "the folder", ".")
    .option("--reranker <model>", "a cross-encoder that reads the best results once more: better order, much slower");
  addModelOptions(addLimitOptions(command)).addHelpText("after", HELP).action(search);
}

/**
 * @param {string} question
 * @param {string} dir
 * @param {import("./hits.mjs").HitFlags & { reranker?: string }} flags
 */
async function search(question, dir, { reranker: rerankerModel, ...flags }) {
  if (!question.trim()) throw usage("the question is empty");
  await withCodeSearch(dir, flags, async (codeSearch, context) => {
    const { limit, signal, progress } = context;
    const reranker = rerankerModel === undefined ? undefined : await loadReranker(rerankerModel, context);
    try {
      await updateIfFree(codeSearch, context);
      const found = await codeSearch.search(question, { limit, reranker, signal });
      progress.clear();
      printHits(found, { dir, words: searchWords(question), flags });
    } finally {
      await reranker?.close();
    }
  });
}

/**
 * @param {string} model
 * @param {Pick<import("./opening.mjs").Context, "signal" | "progress">} context
 */
async function loadReranker(model, { signal, progress }) {
  const { Reranker } = await import("semantic-search-native");
  return Reranker.load(model, { signal, onProgress: progress.showDownload.bind(progress) });
}
