import { type Command, Option } from "commander";
import { ACTIVATIONS, type Activation } from "../lib/activation.js";
import { downloadProgress } from "./download_progress.js";
import { addInputOptions, checkBadLines, checkInput, type InputFlags, type Origin, textsOf } from "./input.js";
import { interruptionSignal } from "./interruption.js";
import { addLoadOptions, count, type LoadFlags, rerankerOptions } from "./load_flags.js";
import { clearStatus, grouped, print, printSummary, showStatus } from "./terminal.js";
import { WholeFile } from "./whole_file.js";

interface RerankFlags extends LoadFlags, InputFlags {
  query: string;
  topK?: number;
  activation?: Activation;
  output?: string;
  quiet?: boolean;
  json?: boolean;
}

const HELP = `
Every line is a text, as for embed. All of them are read before the first is scored.

Output, one line per text, best first:
  {"index":4,"line":5,"score":0.9731}
with "file" if several files are read, "id" if a JSON line has one, and "truncated":true if the text was truncated because
it and the query are longer than --max-tokens.

A line without a text is reported with its number and skipped; the others are scored, and the exit code is 1.

Examples:
  $ semantic-search-native rerank BAAI/bge-reranker-v2-m3 -q "how do I parse a date?" --top-k 10 < candidates.txt
  $ semantic-search-native rerank ./models/ms-marco-MiniLM-L6-v2 found.jsonl -i jsonl -q "a fast hash map" | jq .id`;

export function addRerank(program: Command): void {
  const command = program
    .command("rerank")
    .description("sort lines of standard input or files by a reranker's scores for a query, as JSON lines")
    .argument("<model>", "the folder of a reranker, or a name on the Hugging Face Hub")
    .argument("[files...]", 'files to read (default: "-", standard input)')
    .requiredOption("-q, --query <text>", "what the texts are scored for")
    .option("-k, --top-k <count>", "print only the best texts, this many", count)
    .addOption(
      new Option("--activation <name>", "of scores (default: what the model folder declares)").choices(ACTIVATIONS),
    );
  addInputOptions(command)
    .option("-o, --output <file>", "write to a file, which appears when it is complete")
    .option("--quiet", "print no summary on standard error")
    .option("--json", "summary and messages as JSON; the summary goes to standard output if --output is given");
  addLoadOptions(command, "rerank");
  command.addHelpText("after", HELP).action(rerank);
}

async function rerank(model: string, files: string[], flags: RerankFlags): Promise<void> {
  const inputs = files.length > 0 ? files : ["-"];
  await Promise.all(inputs.map(checkInput));
  const signal = interruptionSignal();
  const { Reranker } = await import("../embedder.js");
  const reranker = await Reranker.load(model, { ...rerankerOptions(flags), signal, onProgress: downloadProgress() });
  clearStatus();
  const start = performance.now();
  const texts: string[] = [];
  const origins: Origin[] = [];
  const truncated = new Set<number>();
  let badLines = 0;
  const output = flags.output === undefined ? undefined : await WholeFile.create(flags.output);
  try {
    for await (const { text, origin } of textsOf(inputs, flags, () => badLines++)) {
      signal.throwIfAborted();
      texts.push(text);
      origins.push(origin);
    }
    const { query, topK, activation } = flags;
    const ranked = await reranker.rank(query, texts, {
      ...(topK !== undefined && { topK }),
      ...(activation && { activation }),
      signal,
      onProgress: ({ done, total }) => showStatus(() => `${grouped(done)} of ${grouped(total)} texts`),
      onTruncated: (indices) => {
        for (const index of indices) truncated.add(index);
      },
    });
    clearStatus();
    for (const { index, score } of ranked) {
      const record = { index, ...origins[index], ...(truncated.has(index) && { truncated: true }), score };
      const line = `${JSON.stringify(record)}\n`;
      await (output ? output.append(Buffer.from(line)) : print(line));
    }
    await output?.complete();
  } catch (error) {
    await output?.discard();
    throw error;
  } finally {
    clearStatus();
    // Otherwise a terminal, or a pipe that its writer keeps open, would keep the process alive.
    process.stdin.destroy();
    await reranker.close();
  }

  const { backend, fingerprint, maxTokens, truncatedTexts } = reranker;
  const seconds = Number(((performance.now() - start) / 1000).toFixed(3));
  const activation = flags.activation ?? reranker.activation;
  const summary = {
    ...{ texts: texts.length, badLines, truncatedTexts, seconds, activation, backend, fingerprint },
    output: flags.output ?? null,
  };
  const cut = truncatedTexts > 0 ? `, ${grouped(truncatedTexts)} of them truncated to ${maxTokens} tokens` : "";
  const line = `${grouped(texts.length)} texts in ${seconds.toFixed(1)} s${cut}`;
  await printSummary(flags, summary, line);
  checkBadLines(badLines, "scored");
}
