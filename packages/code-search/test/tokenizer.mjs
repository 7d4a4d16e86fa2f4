/** The real tokenizer of the starter model, with which estimates are compared. */

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { STARTER_MODEL } from "./folders.mjs";

export function starterTokenizer() {
  const read = (/** @type {string} */ file) => JSON.parse(readFileSync(path.join(STARTER_MODEL, file), "utf8"));
  return new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
}
