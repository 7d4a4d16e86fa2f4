/**
 * Reads the chat template of a reranker that is a language model. `src/chat_template.rs` reads the same files by the same
 * rules for the addon, and explains them; tests compare them.
 */

import { isUtf8 } from "node:buffer";
import { existsSync } from "node:fs";
import * as path from "node:path";
import { EmbedderError } from "./errors.js";
import { isObject, type JsonFile } from "./json_file.js";
import { MOST_SETTINGS, readRegularFile } from "./regular_file.js";

/** What is put around a query and a text. */
export interface ChatTemplate {
  /** In front of the query. It contains the instruction. */
  before: string;
  /** Between both. */
  between: string;
  /** Behind the text. It is kept when the text is truncated. */
  after: string;
}

/** The file of the template, which newer versions write instead of `chat_template` in `tokenizer_config.json`. */
export const CHAT_TEMPLATE_FILE = "chat_template.jinja";

const content = (variable: string, role: string) =>
  `{%- set ${variable} = messages | selectattr("role", "eq", "${role}") | map(attribute="content") | first `;
const literal = (text: string) => text.replace(/[{}|()]/g, "\\$&");
/** Text without Jinja. */
const PLAIN = String.raw`((?:(?!\{[{%#]|\r).)*)`;
const TEMPLATE = new RegExp(
  String.raw`^${literal(`${content("instruction", "system")}| default("`)}([^"\\\r]*)"\) -%\}\s*` +
    String.raw`${literal(`${content("query_text", "query")}-%}`)}\s*${literal(`${content("document_text", "document")}-%}`)}\s*` +
    String.raw`${PLAIN}\{\{ instruction \}\}${PLAIN}\{\{ query_text \}\}${PLAIN}\{\{ document_text \}\}${PLAIN}$`,
  "s",
);
const PROMPT_IS_GENERATED = JSON.stringify({ chat_template: { add_generation_prompt: true } });

/**
 * The template of a folder; `undefined` if pairs are joined by the tokenizer.
 *
 * @param hasModules Whether there is a `modules.json`.
 * @param instruction Replaces the template's own unless it is empty.
 * @throws EmbedderError `MODEL_UNSUPPORTED` for another template, `MODEL_INVALID`
 */
export function readChatTemplate(
  folder: string,
  hasModules: boolean,
  { sentence, tokenizerConfig }: { sentence: JsonFile; tokenizerConfig: JsonFile },
  instruction: string,
): ChatTemplate | undefined {
  const file = path.join(folder, CHAT_TEMPLATE_FILE);
  const modalities = sentence.typed(["modality_config"], "an object", isObject);
  const takesMessages = modalities
    ? "message" in modalities
    : !hasModules && (existsSync(file) || tokenizerConfig.get("chat_template") !== undefined);
  if (!takesMessages) return undefined;
  const { format } = isObject(modalities?.message) ? modalities.message : {};
  if ((format ?? "flat") !== "flat") {
    throw sentence.unsupported(`message format ${JSON.stringify(format)}`, 'supported is "flat"');
  }
  const found = JSON.stringify(sentence.get("processing_kwargs"));
  if (found !== undefined && found !== PROMPT_IS_GENERATED) {
    throw sentence.unsupported(`processing_kwargs ${found}`, `supported is ${PROMPT_IS_GENERATED}, or none`);
  }
  const text = existsSync(file) ? readText(file) : (tokenizerConfig.text("chat_template") ?? "");
  const template = parse(text, instruction);
  if (template && tokenizerConfig.text("truncation_side") === "left") {
    throw tokenizerConfig.unsupported('truncation_side "left" with a chat template', 'supported is "right"');
  }
  if (template) return template;
  throw new EmbedderError(
    "MODEL_UNSUPPORTED",
    `${existsSync(file) ? file : tokenizerConfig.path}: a reranker with another chat template than Qwen3-Reranker's is not supported; ` +
      "put chat_template.jinja of the model's newest revision, or of Qwen/Qwen3-Reranker-0.6B, into the folder",
  );
}

function readText(file: string): string {
  const bytes = readRegularFile(file, MOST_SETTINGS);
  if (isUtf8(bytes)) return bytes.toString("utf8");
  throw new EmbedderError("MODEL_INVALID", `${file} is not UTF-8`);
}

function parse(template: string, instruction: string): ChatTemplate | undefined {
  const parts = TEMPLATE.exec(template)?.slice(1);
  if (!parts) return undefined;
  const [own, before, behind, between, end] = parts as [string, string, string, string, string];
  // Jinja leaves out one newline at the end.
  const after = end.replace(/\n$/, "");
  return after === "" ? undefined : { before: before + (instruction || own) + behind, between, after };
}
