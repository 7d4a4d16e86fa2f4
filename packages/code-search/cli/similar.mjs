import { addLimitOptions, printHits } from "./hits.mjs";
import { existingFolder, fileIn, placeOf } from "./locations.mjs";
import { addModelOptions, similarTo, updateIfFree, withCodeSearch } from "./opening.mjs";

const HELP = `
Examples:
  $ code-search similar src/main.js:12
  $ code-search similar lib/parse.js:40 ~/my-project --json`;

/** @param {import("commander").Command} program */
export function addSimilar(program) {
  const command = program
    .command("similar")
    .description("find code that is like the code at a line")
    .argument("<file:line>", "a place in the folder, as search prints it")
    .argument("[dir]", "the folder", ".");
  addModelOptions(addLimitOptions(command)).addHelpText("after", HELP).action(similar);
}

/**
 * @param {string} place
 * @param {string} dir
 * @param {import("./hits.mjs").HitFlags} flags
 */
async function similar(place, dir, flags) {
  const { file, line } = placeOf(place);
  const path = fileIn(existingFolder(dir), file);
  await withCodeSearch(dir, flags, async (codeSearch, context) => {
    const { limit, signal, progress } = context;
    await updateIfFree(codeSearch, context);
    const found = await similarTo(codeSearch, { path, line }, { limit, signal });
    progress.clear();
    printHits(found, { dir, words: [], flags });
  });
}
