import { addModelOptions, sayWaiting, update, withCodeSearch } from "./opening.mjs";
import { grouped, print } from "./terminal.mjs";

const HELP = `
Reads new and changed files, and computes the vectors of all chunks that have none. After an interruption, the same command
goes on from there. Chunks that another model has embedded are embedded anew.

Examples:
  $ code-search index
  $ code-search index ~/my-project --model nomic-ai/CodeRankEmbed`;

/** @param {import("commander").Command} program */
export function addIndex(program) {
  const command = program
    .command("index")
    .description("make the index of a folder, or bring it up to date, with exact vectors for all of it")
    .argument("[dir]", "the folder", ".")
    .option("--json", "the summary as JSON");
  addModelOptions(command).addHelpText("after", HELP).action(index);
}

/**
 * @param {string} dir
 * @param {import("./configuration.mjs").Settings & { json?: boolean }} flags
 */
async function index(dir, { json, ...options }) {
  await withCodeSearch(dir, options, async (codeSearch, context) => {
    const { folder, signal, progress } = context;
    const start = performance.now();
    const read = await update(codeSearch, context);
    const onWait = () => sayWaiting(folder, progress);
    const embedded = await codeSearch.refine({ signal, onProgress: progress.counting("chunks"), onWait });
    progress.clear();
    const { files, chunks, exact } = codeSearch.status;
    const seconds = Number(((performance.now() - start) / 1000).toFixed(3));
    if (json) {
      const { changed, removed, wasReset } = read;
      const work = { changed, removed, wasReset, embedded: embedded.chunks, truncated: embedded.truncated };
      print(JSON.stringify({ files, chunks, exact, ...work, seconds }));
      return;
    }
    print(
      `${grouped(files)} files, ${grouped(chunks)} chunks: ${grouped(read.changed)} files read, ` +
        `${grouped(read.removed)} removed, ${grouped(embedded.chunks)} chunks embedded, in ${seconds.toFixed(1)} s`,
    );
    if (embedded.truncated > 0) {
      print(
        `${grouped(embedded.truncated)} chunks are longer than the model reads: their ends have no part in the vectors`,
      );
    }
  });
}
