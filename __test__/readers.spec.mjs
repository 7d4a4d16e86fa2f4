/**
 * The addon and the JavaScript fallback read a model folder alike: the same facts, or a refusal with the same code that
 * names the same file. More folders: `node fuzz/javascript.mjs --target=readers --minutes=10 --seed=2`.
 */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Random } from "../scripts/random.mjs";
import { Readers } from "./support/readers.mjs";

const SEED = 1;
const FOLDERS = 1500;

const readers = new Readers();
before(() => readers.prepare());
after(() => readers.close());

const POOLING = "1_Pooling/config.json";
const PROMPTS = "config_sentence_transformers.json";
const SENTENCE = "sentence_bert_config.json";
const DENSE = "2_Dense/config.json";
const TOKENIZER_CONFIG = "tokenizer_config.json";
const TOKEN = { content: "[CLS]", special: true, single_word: false, lstrip: false, rstrip: false, normalized: false };
const module = (type, path = "") => ({ type: `sentence_transformers.models.${type}`, path });
const chain = (...kinds) => [
  module("Transformer"),
  module("Pooling", "1_Pooling"),
  ...kinds.map((kind) => module(kind, `2_${kind}`)),
];

/** What the readers once disagreed about: a file of `bert_mean`, its content or changes to it, and what they say now. */
const SETTLED = [
  ["an array in place of an object", SENTENCE, "[64, true]", "MODEL_INVALID"],
  ["null in place of an object", TOKENIZER_CONFIG, "null", "MODEL_INVALID"],
  ["a key that stands twice", SENTENCE, '{"max_seq_length": 7, "max_seq_length": 9}', { maxTokens: 9 }],
  ["a whole number with a fraction", SENTENCE, '{"max_seq_length": 9.0}', { maxTokens: 9 }],
  ["a limit of no token", SENTENCE, { max_seq_length: 0 }, "MODEL_INVALID"],
  ["a limit of -512 tokens", TOKENIZER_CONFIG, { model_max_length: -512 }, "MODEL_INVALID"],
  ["a limit of half a token", TOKENIZER_CONFIG, { model_max_length: 12.5 }, "MODEL_INVALID"],
  ["no limit", TOKENIZER_CONFIG, { model_max_length: 1e30 }, { maxTokens: 64 }],
  ["lower-casing by 1", SENTENCE, { do_lower_case: 1 }, "MODEL_INVALID"],
  ["a middle to cut", TOKENIZER_CONFIG, { truncation_side: "middle" }, "MODEL_INVALID"],
  ["a number out of range", SENTENCE, '{"a": 1e999}', "MODEL_INVALID"],
  ["a dropped number out of range", SENTENCE, '{"a": -1e400, "a": 1}', "MODEL_INVALID"],
  ["half a surrogate pair, dropped", "config.json", '{"a": "\\ud800", "a": ""}', "MODEL_INVALID"],
  ["half a surrogate pair, in a key", PROMPTS, '{"\\udc00\\ud800": ""}', "MODEL_INVALID"],
  ["an escaped backslash", PROMPTS, '{"a": "\\\\ud800", "b": "\\"\\\\"}', { queryPrompt: "" }],
  ["128 levels, dropped", PROMPTS, `{"a": ${"[".repeat(127)}${"]".repeat(127)}, "a": 1}`, "MODEL_INVALID"],
  ["half a surrogate pair", PROMPTS, '{"prompts": {"query": "\\ud800"}}', "MODEL_INVALID"],
  ["text that is not UTF-8", PROMPTS, Buffer.from('{"prompts": {"query": "\xff"}}', "latin1"), "MODEL_INVALID"],
  ["a byte-order mark", PROMPTS, "\ufeff{}", "MODEL_INVALID"],
  ["128 levels", PROMPTS, `{"a": ${"[".repeat(127)}${"]".repeat(127)}}`, "MODEL_INVALID"],
  ["127 levels", PROMPTS, `{"a": ${"[".repeat(126)}${"]".repeat(126)}}`, { queryPrompt: "" }],
  ["a default prompt that objects have", PROMPTS, { default_prompt_name: "toString" }, "MODEL_INVALID"],
  [
    "a prompt named __proto__",
    PROMPTS,
    '{"prompts": {"__proto__": "p"}, "default_prompt_name": "__proto__"}',
    { queryPrompt: "p" },
  ],
  ["an unknown older pooling mode", POOLING, { pooling_mode_attention: true }, "MODEL_UNSUPPORTED"],
  ["an older key of another name", POOLING, { pooling_mode_cls: true }, "MODEL_UNSUPPORTED"],
  ["an older pooling mode by 1", POOLING, { pooling_mode_cls_token: 1 }, "MODEL_INVALID"],
  ["a pooling mode that is a number", POOLING, { pooling_mode: ["cls", 1] }, "MODEL_INVALID"],
  ["an unknown pooling mode, twice", POOLING, { pooling_mode: ["x", "x"] }, "MODEL_INVALID"],
  ["include_prompt that is a number", POOLING, { include_prompt: 0 }, "MODEL_INVALID"],
  ["a name in a list", "config.json", { _name_or_path: ["coderankembed"] }, { pooling: ["mean"] }],
  ["no modules", "modules.json", "[]", "MODEL_INVALID"],
  ["a class of the model's own", "modules.json", [{ type: "custom_st.Transformer" }], "MODEL_UNSUPPORTED"],
  ["a path out of the folder", "modules.json", [module("Transformer", "a\\..\\..\\b")], "MODEL_INVALID"],
  ["a path of null", "modules.json", [module("Transformer", null)], "MODEL_INVALID"],
  ["a path into a file", "modules.json", [module("Transformer", "config.json")], "MODEL_NOT_FOUND"],
  ["a Normalize in front of a Dense", "modules.json", chain("Normalize", "Dense"), "MODEL_UNSUPPORTED"],
  ["a Dense without a folder", "modules.json", chain("Dense", "Normalize"), "MODEL_NOT_FOUND"],
  ["Dense settings by default", DENSE, { bias: undefined, activation_function: undefined }, { dimension: 24 }],
  ["a Dense of another width", DENSE, { in_features: 48 }, "MODEL_INVALID"],
  ["a Dense without a width", DENSE, { out_features: null }, "MODEL_INVALID"],
  ["a Dense that makes another width", DENSE, { out_features: 47 }, "MODEL_INVALID"],
  ["an activation of the model's own", DENSE, { activation_function: "custom.torch.nn.Tanh" }, "MODEL_UNSUPPORTED"],
  ["an activation without a name", DENSE, { activation_function: "torch.nn." }, "MODEL_UNSUPPORTED"],
  ["a Dense of tokens", DENSE, { module_output_name: "token_embeddings" }, "MODEL_UNSUPPORTED"],
  ["a Dense with a residual", DENSE, { use_residual: true }, "MODEL_UNSUPPORTED"],
  ["a table in place of layers", "modules.json", [module("StaticEmbedding")], "MODEL_INVALID"],
  ["layers in place of a table", "config.json", { model_type: "model2vec" }, "MODEL_INVALID"],
  ["a tokenizer of another version", "tokenizer.json", { version: "2.0" }, "MODEL_INVALID"],
  ["a tokenizer without a decoder", "tokenizer.json", { decoder: undefined }, { maxTokens: 64 }],
  ["an added token with another's id", "tokenizer.json", { added_tokens: [{ ...TOKEN, id: 5 }] }, "MODEL_INVALID"],
];

for (const [title, file, change, expected] of SETTLED) {
  test(`${title} in ${file}`, () => {
    const fixture = file === DENSE ? "bert_dense" : "bert_mean";
    const isChange = typeof change === "object" && !Array.isArray(change) && !Buffer.isBuffer(change);
    const content = isChange ? JSON.stringify({ ...JSON.parse(readers.file(fixture, file)), ...change }) : change;
    const { addon, fallback } = readers.ask(fixture, {
      [file]: Array.isArray(content) ? JSON.stringify(content) : content,
    });
    for (const { code, facts, message } of [addon, fallback]) {
      if (typeof expected === "string") assert.equal(code, expected, message);
      else assert.deepEqual({ ...facts, ...expected }, facts, message);
    }
    assert.equal(fallback.file, addon.file);
    assert.deepEqual(fallback.facts, addon.facts);
  });
}

/** Of rerankers that are language models: a fixture, a file, its content or changes to it, and what both readers say. */
const TEMPLATE = "chat_template.jinja";
const SCORE = "1_LogitScore/config.json";
const INSTRUCTION = { queryPrompt: "Find the code" };
const score = { type: "sentence_transformers.cross_encoder.modules.LogitScore", path: "1_LogitScore" };
const text = { method: "forward", method_output_name: "logits" };
const OF_CHATS = [
  ["qwen3", SCORE, {}, { maxTokens: 192, queryPrompt: "" }],
  ["qwen3", SCORE, {}, { maxTokens: 192, queryPrompt: "" }, INSTRUCTION],
  ["qwen3", SCORE, { false_token_id: null }, { dimension: 1 }],
  ["qwen3", SCORE, { true_token_id: 0 }, { dimension: 1 }],
  ["qwen3", SCORE, { true_token_id: null }, "MODEL_INVALID"],
  ["qwen3", SCORE, { true_token_id: 705 }, "MODEL_INVALID"],
  ["qwen3", SCORE, { false_token_id: -1 }, "MODEL_INVALID"],
  ["qwen3", SCORE, { false_token_id: 1.5 }, "MODEL_INVALID"],
  ["qwen3", SCORE, { module_input_name: "logits" }, "MODEL_UNSUPPORTED"],
  ["qwen3", SCORE, "[]", "MODEL_INVALID"],
  ["qwen3", "modules.json", [module("Transformer")], "MODEL_UNSUPPORTED"],
  ["qwen3", "modules.json", [module("Transformer"), { ...score, path: "2" }], "MODEL_NOT_FOUND"],
  ["qwen3", "modules.json", [module("Transformer"), score, module("Normalize")], "MODEL_UNSUPPORTED"],
  ["qwen3", "modules.json", [module("StaticEmbedding"), score], "MODEL_UNSUPPORTED"],
  ["qwen3", SENTENCE, { modality_config: { text } }, "MODEL_UNSUPPORTED"],
  ["qwen3", SENTENCE, { modality_config: { text, message: text } }, { dimension: 1 }],
  ["qwen3", SENTENCE, { modality_config: { text, message: null } }, { dimension: 1 }],
  ["qwen3", SENTENCE, { modality_config: null }, "MODEL_UNSUPPORTED"],
  ["qwen3", SENTENCE, { modality_config: [] }, "MODEL_INVALID"],
  ["qwen3", SENTENCE, { modality_config: { message: { ...text, format: "structured" } } }, "MODEL_UNSUPPORTED"],
  ["qwen3", SENTENCE, { processing_kwargs: { chat_template: { add_generation_prompt: true } } }, { dimension: 1 }],
  ["qwen3", SENTENCE, { processing_kwargs: { chat_template: { add_generation_prompt: 1 } } }, "MODEL_UNSUPPORTED"],
  ["qwen3", TOKENIZER_CONFIG, { truncation_side: "left" }, "MODEL_UNSUPPORTED"],
  ["qwen3", TOKENIZER_CONFIG, { chat_template: 1 }, { dimension: 1 }],
  ["qwen3", "tokenizer.json", { added_tokens: [] }, "MODEL_UNSUPPORTED"],
  ["qwen3", TEMPLATE, null, "MODEL_UNSUPPORTED"],
  ["qwen3", TEMPLATE, Buffer.of(0xff), "MODEL_INVALID"],
  ["qwen3", TEMPLATE, (words) => words.replaceAll("\n", "\r\n"), "MODEL_UNSUPPORTED"],
  ["qwen3", TEMPLATE, (words) => words.replace("-%}\n", "-%}\n \t\n"), { dimension: 1 }],
  ["qwen3", TEMPLATE, (words) => words.replace("Judge whether", "{ Say } whether"), { dimension: 1 }],
  ["qwen3", TEMPLATE, (words) => words.replace("Judge", "{# Judge #}"), "MODEL_UNSUPPORTED"],
  ["qwen3", TEMPLATE, (words) => words.replace("web search", 'web \\"search'), "MODEL_UNSUPPORTED"],
  ["qwen3", TEMPLATE, (words) => words.replace("{{ query_text }}", "{{query_text}}"), "MODEL_UNSUPPORTED"],
  ["qwen3", TEMPLATE, (words) => words.replace(/\{\{ document_text \}\}.*/s, ""), "MODEL_UNSUPPORTED"],
  ["qwen3", TEMPLATE, (words) => words.replace(/(document_text \}\}).*/s, "$1"), "MODEL_UNSUPPORTED"],
  ["qwen3_classifier", PROMPTS, { default_prompt_name: null }, { queryPrompt: "" }],
  ["qwen3_classifier", "config.json", { id2label: { 0: "a", 1: "b" } }, "MODEL_UNSUPPORTED"],
  ["qwen3_classifier", "modules.json", null, { dimension: 1 }],
  ["qwen3_classifier", TOKENIZER_CONFIG, { model_max_length: 40 }, "INVALID_ARGUMENT"],
];

test("both readers take chat templates alike", () => {
  const fingerprints = new Set();
  for (const [fixture, file, change, expected, options] of OF_CHATS) {
    const name = `rerankers/${fixture}`;
    const isChange = typeof change === "object" && change && !Array.isArray(change) && !Buffer.isBuffer(change);
    const content =
      typeof change === "function"
        ? change(readers.file(name, file))
        : isChange
          ? JSON.stringify({ ...JSON.parse(readers.file(name, file)), ...change })
          : Array.isArray(change)
            ? JSON.stringify(change)
            : change;
    const { addon, fallback } = readers.ask(name, { [file]: content }, { task: "rerank", ...options });
    const what = JSON.stringify([fixture, file, change]);
    for (const { code, facts, message } of [addon, fallback]) {
      if (typeof expected === "string") assert.equal(code, expected, `${what}: ${message}`);
      else assert.deepEqual({ ...facts, ...expected }, facts, `${what}: ${message}`);
    }
    assert.equal(fallback.file, addon.file, what);
    assert.deepEqual(fallback.facts, addon.facts, what);
    if (addon.facts) fingerprints.add(addon.facts.fingerprint);
  }
  assert.ok(fingerprints.size >= 8, `${fingerprints.size}`);
});

test(`${FOLDERS} generated folders mean the same to both readers`, async () => {
  const differences = [];
  for (let index = 0; index < FOLDERS; index++) {
    const difference = await readers.run(new Random("readers", SEED, index));
    if (difference) differences.push(`--target=readers --seed=${SEED} --case=${index}: ${difference}`);
  }
  assert.equal(differences.join("\n\n"), "");
  const { accepted, refused } = readers.counts;
  assert.ok(accepted > FOLDERS / 5 && refused > FOLDERS / 5, `accepted ${accepted}, refused ${refused}`);
});
