import { once } from "node:events";
import { createRequire } from "node:module";
import { failureOf } from "./failure.mjs";
import { textOf } from "./hits.mjs";
import { interruptionSignal } from "./interruption.mjs";
import { LiveIndex } from "./live_index.mjs";
import { existingFolder, fileIn } from "./locations.mjs";
import { addModelOptions, similarTo } from "./opening.mjs";
import { grouped } from "./terminal.mjs";

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
  addTools(server, z, live);
  // The transport itself does not notice that its client is gone.
  for (const event of ["end", "close"]) process.stdin.once(event, () => stop.abort());
  await server.connect(new StdioServerTransport());
  live.start();
  if (!signal.aborted) await once(signal, "abort");
  await server.close();
  await live.close();
}

/**
 * @param {import("@modelcontextprotocol/sdk/server/mcp.js").McpServer} server
 * @param {typeof import("zod").z} z
 * @param {LiveIndex} live
 */
function addTools(server, z, live) {
  const outputSchema = answerSchema(z);
  const annotations = { readOnlyHint: true, openWorldHint: false };
  const question = z.string().trim().min(1).max(MAX_QUESTION).describe("a question, a description, words or a name");
  const path = z.string().min(1).describe("a file of the folder, relative to it or absolute");
  const line = z.number().int().min(1).describe("a line of the code, counted from 1");
  const limit = z.number().int().min(1).max(MAX_LIMIT).optional().describe("most results (default: 10)");
  server.registerTool(
    "search",
    { title: "Search code", description: SEARCH, inputSchema: { question, limit }, outputSchema, annotations },
    ({ question, limit }, { signal }) =>
      answer(live, (codeSearch, usual) => codeSearch.search(question, { limit: limit ?? usual, signal })),
  );
  server.registerTool(
    "similar",
    { title: "Find similar code", description: SIMILAR, inputSchema: { path, line, limit }, outputSchema, annotations },
    ({ path, line, limit }, { signal }) =>
      answer(live, (codeSearch, usual) =>
        similarTo(codeSearch, { path: fileIn(live.folder, path), line }, { limit: limit ?? usual, signal }),
      ),
  );
}

/** @param {typeof import("zod").z} z */
function answerSchema(z) {
  const hit = z.object({
    path: z.string().describe("relative to the folder"),
    line: z.number().int().describe("of the definition"),
    name: z.string().describe("what is defined there; empty for code outside of definitions"),
    startLine: z.number().int(),
    endLine: z.number().int(),
    score: z.number().describe("only its order means something"),
    similarity: z.number().nullable().describe("cosine of question and code; null where it was found in another way"),
    isExact: z.boolean().describe("false while the code's own vector is not computed yet"),
    snippet: z.array(z.object({ line: z.number().int(), text: z.string() })),
  });
  const exact = z
    .object({ chunks: z.number().int(), of: z.number().int() })
    .describe("how much of the index is computed");
  return { hits: z.array(hit), exact };
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
    const { hits, exact } = await ask(codeSearch, Math.min(limit, MAX_LIMIT));
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
