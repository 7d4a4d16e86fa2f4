/**
 * Model folders that differ from the fixtures they are made from: `changedFolder` changes one to three of a folder's settings
 * files at random. To try more, add to the tables: a key of a file with meaningful values, or a way to spoil a whole file.
 */

/** Text that is put into a JSON file as it is, for what no JavaScript value serializes to. */
class Raw {
  constructor(text) {
    this.text = text;
  }
}

/** The values of a key that occurs twice in its object. */
class Twice {
  constructor(first, second) {
    Object.assign(this, { first, second });
  }
}

const raw = (text) => new Raw(text);

function written(value) {
  if (value instanceof Raw) return value.text;
  if (Array.isArray(value)) return `[${value.map(written).join(", ")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const entries = Object.entries(value).flatMap(([key, inner]) =>
    inner instanceof Twice
      ? [
          [key, inner.first],
          [key, inner.second],
        ]
      : [[key, inner]],
  );
  return `{${entries.map(([key, inner]) => `${JSON.stringify(key)}: ${written(inner)}`).join(", ")}}`;
}

const nested = (levels) => raw(`${"[".repeat(levels)}${"]".repeat(levels)}`);

/** Values for any key. */
const ANYTHING = [
  ...[null, true, false, 0, 1, -1, 0.5, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53, -(2 ** 53), 1e18, 1e300],
  ...["1e999", "-1e999", "-0", "1.0", "48.0", "1E2", "18446744073709551616", "1e-320", "0.1e1"].map(raw),
  ...["", "x", "1", "true", "../x", "\0", "__proto__", "constructor", "x".repeat(300)],
  ...['"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"'].map(raw),
  ...[[], {}, [1], ["x"], { a: 1 }, [[]], [null]],
  ...[125, 126, 127, 128, 129, 130].map(nested),
];

const FLAGS = [true, false, null, 0, 1, "true"];
const LIMITS = [
  ...[0, 1, 2, 3, 7, 64, 128, 512, 8192, 1e6, 1e8, 1e8 + 1, 1e30, -1, -512, 0.5, 12.5, 2 ** 31, 2 ** 32, 2 ** 53],
  ...["64.0", "6.4e1", "1e999", "-0", "64.000000000000001"].map(raw),
];
const NAMES = [
  ...["nomic-ai/CodeRankEmbed", "/models/coderankembed-v2/", "CODERANKEMBED//", "coderankembed/x"],
  ...["nomic-ai/nomic-embed-text-v1", "nomic-ai/nomic-embed-text-v1.5", "a/Nomic-Embed-Text-V1.5-copy/"],
  ...["nomic-embed-text", "nomic-embed-text-v2", "/", "", ["x/coderankembed"], "a\\coderankembed"],
];
const MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"];
const OLDER_MODES = [
  ...["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"],
  ...["attention", "cls", "max", "mean", "weightedmean", "lasttoken_tokens", ""],
];
const PROMPTS = [
  ...["", "query: ", 'say "é\u2028"\\: ', "\u007f\u0001\t", "😀 ", "search_document: "],
  ...[null, raw('"\\ud800 "'), 1, []],
];
const PROMPT_NAMES = ["query", "document", "passage", "corpus", "web", "Query", "__proto__", "toString", ""];

const ACTIVATIONS = [
  ...["torch.nn.modules.activation.Tanh", "torch.nn.Tanh", "torch.nn.modules.linear.Identity", "torch.nn.Identity"],
  ...["torch.nn.modules.activation.GELU", "torch.nn.Tanh.", "torch.nn..Tanh", "torch.Tanh", "Tanh", "a\ntorch.nn.Tanh"],
  ...["torch.nn.a\nb.Tanh", "custom.Tanh", "", null],
];
const OUTPUTS = ["sentence_embedding", "token_embeddings", "", null];

/** A function in a table gets the random generator and returns a value. */
const PROMPT_OBJECT = (random) =>
  Object.fromEntries(Array.from({ length: random.below(4) }, () => [random.of(PROMPT_NAMES), random.of(PROMPTS)]));
const MODE_LIST = (random) =>
  Array.from({ length: random.below(4) }, () => random.of([...MODES, ...MODES, "median", 1]));

const TYPES = [
  ...[
    "Transformer",
    "StaticEmbedding",
    "Pooling",
    "Normalize",
    "Dense",
    "Dropout",
    "LayerNorm",
    "transformer",
    "Transformer ",
  ],
].flatMap((kind) => [
  ...[`sentence_transformers.models.${kind}`, `sentence_transformers.base.modules.${kind.toLowerCase()}.${kind}`],
  ...[`sentence_transformers.sentence_transformer.modules.${kind}`, `custom_st.${kind}`, kind, `.${kind}`],
]);
const PATHS = [
  ...[
    "",
    ".",
    "./",
    "1_Pooling",
    "1_Pooling/",
    "./1_Pooling",
    "nowhere",
    "1_Pooling//",
    "2_Dense",
    "2_Dense/",
    "3_Dense",
    "0_Transformer",
    "1_Pooling/.",
  ],
  ...["..", "../x", "1_Pooling/..", "1_Pooling/../..", "..\\x", "a\\..\\b", "/", "/etc", "a\0b", "...", "..x"],
  ...[null, 1, raw('"\\ud800"')],
];
const MODULE = (random) => {
  if (random.next() < 0.1) return random.of([null, 1, "x", [], ["", "sentence_transformers.models.Transformer"], {}]);
  const module = { idx: 0, name: "0", path: random.of(PATHS), type: random.of(TYPES) };
  if (random.next() < 0.1) delete module[random.of(["path", "type", "idx", "name"])];
  if (random.next() < 0.05) module.type = random.of(ANYTHING);
  return module;
};

/** For each file, paths of keys that a reader may look at, with meaningful values. */
const KEYS = {
  "config.json": {
    // The others are the encoder's, which the addon alone reads.
    _name_or_path: NAMES,
    torch_dtype: ["float16"],
    max_length: LIMITS,
    model_type: ["model2vec", "model2vec", "Model2Vec"],
  },
  "sentence_bert_config.json": {
    max_seq_length: LIMITS,
    do_lower_case: FLAGS,
    unknown: [1],
  },
  "tokenizer_config.json": {
    model_max_length: LIMITS,
    truncation_side: ["left", "right", "middle", "Left", ""],
    do_lower_case: FLAGS,
    padding_side: ["left"],
  },
  "special_tokens_map.json": { cls_token: ["[CLS]", "x"] },
  "config_sentence_transformers.json": {
    prompts: [PROMPT_OBJECT, PROMPT_OBJECT, PROMPT_OBJECT],
    default_prompt_name: [...PROMPT_NAMES, null],
    similarity_fn_name: ["cosine", "dot"],
    ...Object.fromEntries(PROMPT_NAMES.slice(0, 5).map((name) => [`prompts/${name}`, PROMPTS])),
  },
  "1_Pooling/config.json": {
    pooling_mode: [...MODES, MODE_LIST, MODE_LIST, "MEAN", "median", null, [["cls"]]],
    ...Object.fromEntries(OLDER_MODES.map((mode) => [`pooling_mode_${mode}`, [true, true, ...FLAGS]])),
    word_embedding_dimension: [48, 32, 47, null, 0, raw("48.0"), raw("32.0")],
    embedding_dimension: [48, 32, 47, null],
    include_prompt: FLAGS,
    unknown: [true],
  },
  "2_Dense/config.json": {
    in_features: [32, 48, 64, raw("32.0"), null],
    out_features: [48, 24, 1, raw("4.8e1"), null],
    bias: FLAGS,
    activation_function: ACTIVATIONS,
    module_input_name: OUTPUTS,
    module_output_name: OUTPUTS,
    use_residual: FLAGS,
    unknown: [true],
  },
  "3_Dense/config.json": {
    in_features: [48, 24, 32],
    out_features: [24, 48, 7, 2 ** 31],
    activation_function: ACTIVATIONS,
  },
  "tokenizer.json": {
    version: ["1.0", "2.0"],
    truncation: [null, { direction: "Left", max_length: 3, strategy: "LongestFirst", stride: 0 }],
    padding: [null],
    added_tokens: [[]],
    "added_tokens/0/id": [0, 5, 1410, 1411, 1472, 9999],
    "added_tokens/4/content": ["<mask>", "[CLS]"],
    normalizer: [null],
    "normalizer/lowercase": [true, false],
    "normalizer/strip_accents": [true, false, null],
    pre_tokenizer: [null, { type: "WhitespaceSplit" }],
    post_processor: [null],
    "post_processor/special_tokens/[CLS]/ids": [[2], [3], [2, 3], [9999], []],
    "post_processor/single": [[{ Sequence: { id: "A", type_id: 0 } }]],
    decoder: [null],
    "model/unk_token": ["[UNK]"],
    "model/max_input_chars_per_word": [0, 1, 4, 100, 1e6],
    "model/continuing_subword_prefix": ["##", ""],
    "model/vocab/time": [1411, 1471, 1472, 9999, 5, 2 ** 31, 2 ** 32],
  },
};

/**
 * Values of another type are tried only where both readers look: the libraries that read the rest of `tokenizer.json`
 * are not ours.
 */
const OF_ANY_TYPE = {
  "tokenizer.json": ["added_tokens/0/id", "model/vocab/time", "model/max_input_chars_per_word"],
};
/** JavaScript does not distinguish 100.0 from 100; the tokenizer's own reader does. */
const isWholeFraction = (value) => value instanceof Raw && Number.isInteger(Number(value.text));
/** For a key that occurs twice, `JSON.parse` does not show the first value. */
const isPlain = (value) => !(value instanceof Raw);

const SPOILED = [
  (text) => text.slice(0, text.length / 2),
  (text) => `\ufeff${text}`,
  (text) => `${text}\n`,
  (text) => `${text}x`,
  (text) => `${text}${text}`,
  (text) => `// a comment\n${text}`,
  (text) => text.replace(/\}\s*$/, ",}"),
  (text) => text.replaceAll('"', "'"),
  (text) => text.replace(/[{[]/, '$&"\\ud800": 1, '),
  (text) => text.replace(/[{[]/, '$&"a": NaN, '),
  (text) => text.replace(/[{[]/, '$&"a": 1e999, '),
  (text) => text.replace(/[{[]/, '$&"a": "\t", '),
  (text) => text.replace(/[{[]/, '$&"__proto__": {"model_type": "t5"}, '),
  (text) => Buffer.from(text, "utf16le"),
  (text) => Buffer.concat([Buffer.from(text.replace(/[{[]/, '$&"a": "')), Buffer.from([0xff]), Buffer.from('"}')]),
  (text) => Buffer.from(text.replace(/[{[]/, '$&"caf\xe9": "\xff", '), "latin1"),
  ...["", " ", "null", "[]", "{}", "1", '"x"', "true", "oops", "[{}]", "\0", "NaN", '{"a" 1}'].map(
    (text) => () => text,
  ),
  ...[126, 127, 128, 129].map((levels) => () => written(nested(levels))),
  ...[125, 126, 127, 128].map((levels) => () => written({ a: nested(levels) })),
];

function setAt(json, keyPath, change) {
  const keys = keyPath.split("/");
  let parent = json;
  for (const key of keys.slice(0, -1)) {
    if (typeof parent[key] !== "object" || parent[key] === null) return;
    parent = parent[key];
  }
  if (typeof parent === "object" && parent !== null && !(parent instanceof Raw)) change(parent, keys.at(-1));
}

function changedSettings(random, file, json) {
  const keys = Object.keys(KEYS[file]);
  for (let changes = 1 + random.below(3); changes > 0; changes--) {
    const keyPath = random.of(keys);
    const meant = () => {
      const value = random.of(KEYS[file][keyPath]);
      return typeof value === "function" ? value(random) : value;
    };
    const other = () => {
      if (!OF_ANY_TYPE[file]) return random.of(ANYTHING);
      if (!OF_ANY_TYPE[file].includes(keyPath)) return meant();
      return random.of(ANYTHING.filter((value) => !isWholeFraction(value)));
    };
    const kind = random.next();
    setAt(json, keyPath, (parent, key) => {
      if (kind < 0.15) delete parent[key];
      else if (kind < 0.4) parent[key] = other();
      // An array has no keys, and the tokenizer's own reader refuses a key that comes twice.
      else if (kind < 0.45 && file !== "tokenizer.json" && !Array.isArray(parent))
        parent[key] = new Twice(random.of(ANYTHING.filter(isPlain)), meant());
      else parent[key] = meant();
    });
  }
  return json;
}

function changedModules(random, modules) {
  if (random.next() < 0.3) return Array.from({ length: random.below(5) }, () => MODULE(random));
  for (let changes = 1 + random.below(2); changes > 0; changes--) {
    const kind = random.below(6);
    const index = random.below(modules.length + 1);
    if (kind === 0) modules.splice(index, 1);
    else if (kind === 1) modules.splice(index, 0, MODULE(random));
    else if (kind === 2 && modules[index]) modules[index] = MODULE(random);
    else if (modules[index]) {
      const key = random.of(["path", "type", "idx"]);
      const meant = { path: PATHS, type: TYPES, idx: [0, 7] }[key];
      modules[index] = { ...modules[index], [key]: random.of(random.next() < 0.2 ? ANYTHING : meant) };
    }
  }
  return modules;
}

/**
 * @param {import("../../scripts/random.mjs").Random} random
 * @param {{ [file: string]: string }} files of a fixture; those of the Transformer may lie in a folder of their own
 * @returns {{ [file: string]: string | Buffer | null }} the changed files; `null` removes one
 */
export function changedFolder(random, files) {
  const changed = {};
  const nameOf = (file) => Object.keys(files).find((name) => name === file || name.endsWith(`_Transformer/${file}`));
  // A module's settings only where the folder has the module.
  const candidates = Object.keys(KEYS).filter((file) => !file.includes("/") || files[file] !== undefined);
  for (let changes = random.of([1, 1, 1, 2, 2, 3]); changes > 0; changes--) {
    const file = random.of([...candidates, "modules.json"]);
    const name = nameOf(file) ?? file;
    const text = files[name] ?? "{}";
    const kind = random.next();
    if (kind < 0.08) changed[name] = null;
    else if (kind < 0.2 && file !== "tokenizer.json") changed[name] = random.of(SPOILED)(text);
    else if (file === "modules.json") changed[name] = written(changedModules(random, JSON.parse(text)));
    else changed[name] = written(changedSettings(random, file, JSON.parse(text)));
  }
  return changed;
}

/** Valid options that interact with a folder's settings; other tests check invalid ones. */
export const OPTIONS = [
  ...[{}, {}, {}, {}, { maxTokens: 3 }, { maxTokens: 100_000 }, { normalize: false }],
  ...[{ pooling: "max" }, { queryPrompt: "", documentPrompt: "" }, { queryPrompt: "q: " }, { documentPrompt: "d: " }],
  ...[{ dimensions: 8 }, { dimensions: 40 }, { dimensions: 64, layerNorm: true }, { dimensions: 8, layerNorm: false }],
];
