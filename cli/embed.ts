import { type Command, Option } from "commander";
import { ENCODINGS, type Encoding } from "../lib/engine.js";
import type { StreamedVector } from "../lib/stream.js";
import { downloadProgress } from "./download_progress.js";
import { addInputOptions, checkBadLines, checkInput, type InputFlags, type Origin, textsOf } from "./input.js";
import { interruptionSignal } from "./interruption.js";
import { addLoadOptions, type LoadFlags, loadOptions } from "./load_flags.js";
import { clearStatus, grouped, printSummary, showStatus } from "./terminal.js";
import { vectorOutput } from "./vector_output.js";

interface EmbedFlags extends LoadFlags, InputFlags {
  kind: "query" | "document";
  encoding: Encoding;
  output?: string;
  quiet?: boolean;
  json?: boolean;
}

/** Most texts that are read ahead of the vectors that are written. */
const MAX_UNWRITTEN = 4096;

const HELP = `
Every line is a text, including empty lines, so that line n is text n. With --input-format jsonl, every line is a JSON
object whose --field contains the text; its "id", if it has one, is copied to the output.

Output, one line per text, in the order of the texts:
  {"index":0,"line":1,"vector":[0.0123,…]}
with "file" if several files are read, "id" as above, and "truncated":true if the text was truncated to --max-tokens.
The file of --output appears when it is complete. A .npy file has one row per text: float32, int8 or (binary) uint8.

A line without a text (invalid JSON, no such field, not UTF-8) is reported with its number and skipped; the others are
embedded, and the exit code is 1.

Examples:
  $ git ls-files | semantic-search-native embed ./models/all-MiniLM-L6-v2 > names.jsonl
  $ semantic-search-native embed nomic-ai/CodeRankEmbed functions.jsonl --input-format jsonl --field code -o code.npy
  $ echo "where are tokens validated?" | semantic-search-native embed nomic-ai/CodeRankEmbed --kind query
  $ semantic-search-native embed nomic-ai/CodeRankEmbed *.txt --dtype int8 --encoding binary -o bits.npy`;

export function addEmbed(program: Command): void {
  const command = program
    .command("embed")
    .description("embed lines of standard input or files, as JSON lines or a NumPy array")
    .argument("<model>", "a model folder, or a name on the Hugging Face Hub")
    .argument("[files...]", 'files to read (default: "-", standard input)');
  addInputOptions(command)
    .addOption(
      new Option("-k, --kind <kind>", "what the texts are, which selects the model's prompt")
        .choices(["query", "document"])
        .default("document"),
    )
    .addOption(new Option("-e, --encoding <encoding>", "how numbers are stored").choices(ENCODINGS).default("float32"))
    .option("-o, --output <file>", "write to a file: a NumPy array if its name ends in .npy, else JSON lines")
    .option("-q, --quiet", "print no summary on standard error")
    .option("--json", "summary and messages as JSON; the summary goes to standard output if --output is given");
  addLoadOptions(command);
  command.addHelpText("after", HELP).action(embed);
}

async function embed(model: string, files: string[], flags: EmbedFlags): Promise<void> {
  const inputs = files.length > 0 ? files : ["-"];
  await Promise.all(inputs.map(checkInput));
  const signal = interruptionSignal();
  const { Embedder } = await import("../embedder.js");
  const embedder = await Embedder.load(model, { ...loadOptions(flags), signal, onProgress: downloadProgress() });
  clearStatus();
  const start = performance.now();
  const output = await vectorOutput(flags.output, flags.encoding, embedder.dimension);
  /** The origins of the texts that are being computed, in order. */
  const origins: Origin[] = [];
  /** Vectors that became ready before those of earlier texts. */
  const early = new Map<number, StreamedVector<Encoding>>();
  let goOn = () => {};
  let badLines = 0;
  let texts = 0;

  async function* read(): AsyncGenerator<string> {
    for await (const { text, origin } of textsOf(inputs, flags, () => badLines++)) {
      origins.push(origin);
      yield text;
      while (origins.length >= MAX_UNWRITTEN) {
        await new Promise<void>((resolve) => {
          goOn = resolve;
        });
      }
    }
  }

  const rate = () => Math.round(texts / ((performance.now() - start) / 1000));
  try {
    const { kind, encoding } = flags;
    for await (const streamed of embedder.stream(read(), { kind, encoding, signal })) {
      early.set(streamed.index, streamed);
      for (let next = early.get(texts); next; next = early.get(texts)) {
        const { index, vector, truncated } = next;
        early.delete(index);
        const origin = origins.shift() as Origin;
        await output.write({ index, ...origin, ...(truncated && { truncated }) }, vector);
        texts++;
      }
      goOn();
      if (flags.output !== undefined && !flags.quiet) {
        showStatus(() => `${grouped(texts)} texts, ${grouped(rate())} per second`);
      }
    }
    await output.complete();
  } catch (error) {
    await output.discard();
    throw error;
  } finally {
    clearStatus();
    // Otherwise a terminal, or a pipe that its writer keeps open, would keep the process alive.
    process.stdin.destroy();
    await embedder.close();
  }

  const { backend, dimension, fingerprint, maxTokens, truncatedTexts } = embedder;
  const summary = {
    ...{ texts, badLines, truncatedTexts, seconds: Number(((performance.now() - start) / 1000).toFixed(3)) },
    ...{ dimension, encoding: flags.encoding, kind: flags.kind, backend, fingerprint, output: flags.output ?? null },
  };
  const cut = truncatedTexts > 0 ? `, ${grouped(truncatedTexts)} of them truncated to ${maxTokens} tokens` : "";
  const line = `${grouped(texts)} texts in ${summary.seconds.toFixed(1)} s (${grouped(rate())} per second)${cut}`;
  await printSummary(flags, summary, line);
  checkBadLines(badLines, "embedded");
}
