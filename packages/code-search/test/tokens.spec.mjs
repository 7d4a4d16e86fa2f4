/** The estimate of tokens against the real tokenizer. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { estimateTokens } from "../lib/tokens.mjs";
import { WITHOUT_STARTER_MODEL } from "./folders.mjs";
import { SAMPLES } from "./samples.mjs";
import { starterTokenizer } from "./tokenizer.mjs";

test("signs are a token each, white space is none, long words are several", () => {
  assert.equal(estimateTokens(""), 0);
  assert.equal(estimateTokens("  \t "), 0);
  assert.equal(estimateTokens("({[;]})"), 7);
  assert.equal(estimateTokens("漢字"), 2);
  assert.ok(estimateTokens("value") < 1.5);
  assert.ok(estimateTokens("deserializeUnsupportedIdentifier") > 6);
  assert.ok(estimateTokens("a94a8fe5ccb19ba61c4c0873d391e987982fbbd3") > 15);
});

test("a word that goes on in another case is no shorter than its parts", () => {
  for (const [word, parts] of [
    ["HTTPServer", "HTTP Server"],
    ["readAllBytes", "read All Bytes"],
    ["utf8", "utf 8"],
  ]) {
    assert.ok(estimateTokens(word) >= estimateTokens(parts), word);
    assert.ok(estimateTokens(word) < estimateTokens(parts) + 2, word);
  }
});

test("of code in all languages the estimate is close to the tokenizer", { skip: WITHOUT_STARTER_MODEL }, () => {
  const tokenizer = starterTokenizer();
  let all = 0;
  let estimated = 0;
  for (const [file, { source }] of Object.entries(SAMPLES)) {
    const tokens = tokenizer.encode(source, { add_special_tokens: false }).ids.length;
    const estimate = source.split("\n").reduce((sum, line) => sum + estimateTokens(line), 0);
    all += tokens;
    estimated += estimate;
    assert.ok(estimate > 0.85 * tokens && estimate < 1.25 * tokens, `${file}: ${estimate} of ${tokens}`);
  }
  assert.ok(estimated > 0.98 * all && estimated < 1.1 * all, `${estimated} of ${all}`);
});
