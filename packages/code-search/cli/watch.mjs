import { addModelOptions, withCodeSearch } from "./opening.mjs";
import { grouped, print } from "./terminal.mjs";

const HELP = `
Ends with Ctrl-C, with exit code 0. Other commands can search the folder meanwhile.

Examples:
  $ code-search watch
  $ code-search watch ~/my-project`;

/** @param {import("commander").Command} program */
export function addWatch(program) {
  const command = program
    .command("watch")
    .description("bring the index of a folder up to date after each change, until Ctrl-C")
    .argument("[dir]", "the folder", ".");
  addModelOptions(command).addHelpText("after", HELP).action(watch);
}

/**
 * @param {string} dir
 * @param {import("./configuration.mjs").Settings} options
 */
async function watch(dir, options) {
  await withCodeSearch(dir, options, async (codeSearch, { folder, signal, progress }) => {
    progress.say(`watching ${folder} until Ctrl-C`);
    const onUpdate = () => {
      const { files, chunks, exact } = codeSearch.status;
      progress.clear();
      print(`${time()} ${grouped(files)} files, ${grouped(exact)} of ${grouped(chunks)} chunks exact`);
    };
    await untilAborted(codeSearch.watch({ signal, onUpdate, onWarning: progress.say.bind(progress) }), signal);
  });
}

/**
 * That it is stopped is how it ends.
 *
 * @param {Promise<void>} work
 * @param {AbortSignal} signal
 */
export async function untilAborted(work, signal) {
  try {
    await work;
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** The time of day. */
function time() {
  return new Date().toTimeString().slice(0, 8);
}
