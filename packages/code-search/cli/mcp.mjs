import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
import { Failure, failureOf } from "./failure.mjs";
import { textOf } from "./hits.mjs";
import { interruptionSignal } from "./interruption.mjs";
import { existingFolder, fileIn } from "./locations.mjs";
import { addModelOptions, openFolder, similarTo } from "./opening.mjs";
import { ProgressLine } from "./progress.mjs";
import { grouped } from "./terminal.mjs";
import { untilAborted } from "./watch.mjs";

const HELP = `
A server of the Model Context Protocol over standard input and output, for coding agents: its tools are search and similar.
The index follows the folder while it runs.

Examples:
  $ claude mcp add code-search -- npx -y semantic-search-native-code-search mcp .
  $ code-search mcp ~/my-project`;

const INSTRUCTIONS = `Searches the source code of one folder by meaning and by words. Use "search" to find where something
is done when you do not know its name; use grep for an exact string that you know. Use "similar" for other code that does
what a piece of code does. Paths in results are relative to the folder.`;

const SEARCH = `Finds the functions, types and other pieces of code in this project that answer a question. Use it before
grep or reading files when you want to know where or how something is done and do not know the exact names: describe the
behavior in a sentence ("where are expired sessions deleted?"), or give the name of a function or type. Results are
ordered, the best first, each with path, line, name and some lines; read the file there for more.`;

const SIMILAR = `Finds pieces of code in this project that are like the one at a line of a file: duplicates, other
implementations of the same idea, examples to follow. Use it before you change code that may exist more than once, or
to see how the project does such a thing elsewhere.`;

const MAX_LIMIT = 100;
const MAX_QUESTION = 4000;
/** Clients give up after a minute, often. */
const MOST_WAIT_MS = 30_000;

/** @param {import("commander").Command} program */
export function addMcp(program) {
  const command = program
    .command("mcp")
    .description("serve searches to coding agents by the Model Context Protocol")
    .argument("[dir]", "the folder", ".");
  addModelOptions(command).addHelpText("after", HELP).action(serve);
}

/**
 * @param {string} dir
 * @param {import("./configuration.mjs").Settings} options
 */
async function serve(dir, options) {
  const folder = existingFolder(dir);
  const stop = new AbortController();
  const signal = AbortSignal.any([interruptionSignal(), stop.signal]);
  const [{ McpServer }, { StdioServerTransport }, { z }] = await Promise.all([
    import("@modelcontextprotocol/sdk/server/mcp.js"),
    import("@modelcontextprotocol/sdk/server/stdio.js"),
    import("zod"),
  ]);
  const { version } = createRequire(import.meta.url)("../package.json");
  const server = new McpServer({ name: "code-search", version }, { instructions: INSTRUCTIONS });
  const live = new LiveIndex(folder, options, signal);

  const limit = z.number().int().min(1).max(MAX_LIMIT).optional().describe("most results (default: 10)");
  const hit = z.object({
    path: z.string().describe("relative to the folder"),
    line: z.number().int().describe("of the definition"),
    name: z.string().describe("what is defined there; empty for code outside of definitions"),
    startLine: z.number().int(),
    endLine: z.number().int(),
    score: z.number().describe("only its order means something"),
    similarity: z.number().nullable().describe("cosine of question and code; null where only words matched"),
    isExact: z.boolean().describe("false while the code's own vector is not computed yet"),
    snippet: z.array(z.object({ line: z.number().int(), text: z.string() })),
  });
  const outputSchema = {
    hits: z.array(hit),
    exact: z.object({ chunks: z.number().int(), of: z.number().int() }).describe("how much of the index is computed"),
  };
  const annotations = { readOnlyHint: true, openWorldHint: false };
  const question = z.string().trim().min(1).max(MAX_QUESTION).describe("a question, a description, words or a name");
  server.registerTool(
    "search",
    { title: "Search code", description: SEARCH, inputSchema: { question, limit }, outputSchema, annotations },
    ({ question, limit }, { signal }) =>
      answer(live, (codeSearch, usual) => codeSearch.search(question, { limit: limit ?? usual, signal })),
  );
  const file = z.string().min(1).describe("a file of the folder, relative to it or absolute");
  const line = z.number().int().min(1).describe("a line of the code, counted from 1");
  server.registerTool(
    "similar",
    {
      title: "Find similar code",
      description: SIMILAR,
      inputSchema: { path: file, line, limit },
      outputSchema,
      annotations,
    },
    ({ path, line, limit }, { signal }) =>
      answer(live, (codeSearch, usual) =>
        similarTo(codeSearch, { path: fileIn(folder, path), line }, { limit: limit ?? usual, signal }),
      ),
  );

  // The transport itself does not notice that its client is gone.
  process.stdin.once("end", () => stop.abort());
  process.stdin.once("close", () => stop.abort());
  await server.connect(new StdioServerTransport());
  live.start();
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  await server.close();
  await live.close();
}

/**
 * A tool's result. What goes wrong is one as well, which the agent reads.
 *
 * @param {LiveIndex} live
 * @param {(codeSearch: import("./opening.mjs").CodeSearch, limit: number) => Promise<import("./hits.mjs").Found>} ask
 */
async function answer(live, ask) {
  try {
    const { codeSearch, limit, state } = await live.get();
    const { hits, exact } = await ask(codeSearch, limit);
    const notes = [state, exact.chunks < exact.of ? partly(exact) : "", hits.length === 0 ? "nothing was found" : ""];
    const text = [...hits.map((hit) => textOf(hit)), ...notes.filter(Boolean)].join("\n\n");
    return { content: [{ type: /** @type {const} */ ("text"), text }], structuredContent: { hits, exact } };
  } catch (error) {
    const { code, message } = failureOf(error);
    return { content: [{ type: /** @type {const} */ ("text"), text: `error [${code}]: ${message}` }], isError: true };
  }
}

/** @param {{ chunks: number, of: number }} exact */
function partly({ chunks, of }) {
  return `(${grouped(chunks)} of ${grouped(of)} chunks have exact vectors so far: results get better while the others are computed)`;
}

/** An index that is opened and follows its folder, beside the server that already answers. */
class LiveIndex {
  /** @type {Promise<{ codeSearch: import("./opening.mjs").CodeSearch, limit: number }> | undefined} */
  #opening;
  /** @type {Promise<void>} */
  #updated = Promise.resolve();
  /** @type {Promise<void>} */
  #following = Promise.resolve();
  #state = "the model is being loaded";

  /**
   * @param {string} folder
   * @param {import("./configuration.mjs").Settings} options
   * @param {AbortSignal} signal
   */
  constructor(folder, options, signal) {
    this.folder = folder;
    this.options = options;
    this.signal = signal;
    this.progress = new ProgressLine(process.stderr);
  }

  /** Does not wait. What goes wrong is said to whoever asks. */
  start() {
    this.#open().catch(() => {});
  }

  /** Opens it once; again after a failure, whose reason may be gone. */
  #open() {
    this.#opening ??= openFolder(this.folder, this.options, this).then(
      (opened) => {
        this.#follow(opened.codeSearch);
        return opened;
      },
      (error) => {
        this.#opening = undefined;
        this.progress.say(`error: ${failureOf(error).message}`);
        throw error;
      },
    );
    return this.#opening;
  }

  /** @param {import("./opening.mjs").CodeSearch} codeSearch */
  #follow(codeSearch) {
    const { signal } = this;
    const onWarning = this.progress.say.bind(this.progress);
    const onProgress = (/** @type {import("./progress.mjs").Progress} */ { done, total }) => {
      this.#state = `(${grouped(done)} of ${grouped(total)} files are read so far)`;
    };
    let answerable = () => {};
    this.#updated = new Promise((resolve) => {
      answerable = () => resolve(undefined);
    });
    const work = async () => {
      try {
        // Another process that is at work on the index brings it up to date as well, and may take long.
        await codeSearch.update({ signal, onProgress, onWarning, onWait: answerable });
        this.#state = "";
      } finally {
        answerable();
      }
      await codeSearch.watch({ signal, onWarning });
    };
    this.#following = untilAborted(work(), signal).catch((error) => {
      this.#state = `(the index does not follow its folder: ${failureOf(error).message})`;
      this.progress.say(this.#state);
    });
  }

  /**
   * The index, up to date if that does not take long, else as far as it is; `state` says how far.
   */
  async get() {
    const timer = new AbortController();
    const late = sleep(MOST_WAIT_MS, "late", { signal: timer.signal });
    late.catch(() => {});
    try {
      const opened = await Promise.race([this.#open(), late]);
      if (typeof opened === "string") {
        throw new Failure("NOT_READY", `${this.#state}: ask again in a minute`);
      }
      await Promise.race([this.#updated, late]);
      return { ...opened, state: this.#state };
    } finally {
      timer.abort();
    }
  }

  async close() {
    const opened = await this.#opening?.catch(() => undefined);
    await this.#following;
    await opened?.codeSearch.close();
  }
}
