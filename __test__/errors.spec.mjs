/** One test per error: its code, what its message names, and that the process survives. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as path from "node:path";
import { after, afterEach, before, test } from "node:test";
import { decodeSafetensors, encodeSafetensors } from "../scripts/safetensors.mjs";
import { api, BACKENDS, changedModel, embedderError, model, temporaryFolder, withEmbedder } from "./support/models.mjs";

const { Embedder } = api;
const POOLING = "1_Pooling/config.json";

for (const backend of BACKENDS) {
  let embedder;
  before(async () => {
    embedder = await Embedder.load(await model("bert_mean"), { backend });
  });
  after(() => embedder.close());
  afterEach(async () => {
    assert.equal((await embedder.embed(["still alive"])).length, 1);
  });

  const loadFails = (title, name, changes, options, ...expected) =>
    test(`${backend}: ${title}`, async () => {
      const folder = await changedModel(name, changes);
      await assert.rejects(Embedder.load(folder, { ...options, backend }), embedderError(...expected));
    });

  test(`${backend}: texts that are not an array`, async () => {
    for (const [texts, found] of [
      ["text", '"text"'],
      [undefined, "undefined"],
      [{ 0: "a", length: 1 }, "an object"],
    ]) {
      await assert.rejects(
        embedder.embed(texts),
        embedderError("INVALID_ARGUMENT", "texts", "an array of strings", found),
      );
    }
  });

  test(`${backend}: a text that is not a string is named by its index`, async () => {
    await assert.rejects(embedder.embed(["a", "b", 7]), embedderError("INVALID_ARGUMENT", "texts[2]", "a string", "7"));
    // biome-ignore lint/suspicious/noSparseArray: the hole is the point.
    await assert.rejects(embedder.embed(["a", , "c"]), embedderError("INVALID_ARGUMENT", "texts[1]", "undefined"));
    await assert.rejects(embedder.embedQuery(null), embedderError("INVALID_ARGUMENT", "text", "a string", "null"));
  });

  test(`${backend}: options of embed`, async () => {
    await assert.rejects(embedder.embed([], { knid: "query" }), embedderError("INVALID_ARGUMENT", '"knid"', '"kind"'));
    await assert.rejects(
      embedder.embed([], { kind: "code" }),
      embedderError("INVALID_ARGUMENT", "kind", '"document"', '"code"'),
    );
    await assert.rejects(
      embedder.embed([], { onTruncated: 1 }),
      embedderError("INVALID_ARGUMENT", "onTruncated", "a function"),
    );
    await assert.rejects(embedder.embed([], "query"), embedderError("INVALID_ARGUMENT", "options", '"query"'));
  });

  test(`${backend}: an error thrown by onTruncated rejects the call`, async () => {
    const onTruncated = () => {
      throw new Error("mine");
    };
    await assert.rejects(embedder.embed(["word ".repeat(1000)], { onTruncated }), /mine/);
  });

  test(`${backend}: an unknown option is refused with the closest known one`, async () => {
    const folder = await model("bert_mean");
    for (const [name, hint] of [
      ["maxtoken", "maxTokens"],
      ["Backend", "backend"],
      ["querryPrompt", "queryPrompt"],
    ]) {
      await assert.rejects(
        Embedder.load(folder, { backend, [name]: 1 }),
        embedderError("INVALID_ARGUMENT", JSON.stringify(name), `did you mean "${hint}"?`),
      );
    }
    await assert.rejects(
      Embedder.load(folder, { backend, zzz: 1 }),
      (error) => !error.message.includes("did you mean"),
    );
  });

  test(`${backend}: option values of the wrong kind`, async () => {
    const folder = await model("bert_mean");
    const wrong = {
      pooling: ["median", "[cls]"],
      queryPrompt: [1, null],
      documentPrompt: [false],
      maxTokens: [0, -1, 1.5, "512", Number.NaN, 2 ** 40],
      normalize: [0, "yes"],
      dtype: ["float32", 32],
      threads: [0, "all"],
      onnxRuntimeLibrary: ["", 1],
    };
    for (const [name, values] of Object.entries(wrong)) {
      for (const value of values) {
        await assert.rejects(
          Embedder.load(folder, { backend, [name]: value }),
          embedderError("INVALID_ARGUMENT", name, "expected"),
        );
      }
    }
    await assert.rejects(
      Embedder.load(folder, { backend: "gpu" }),
      embedderError("INVALID_ARGUMENT", "backend", '"onnx-js"'),
    );
    await assert.rejects(Embedder.load(folder, "onnx"), embedderError("INVALID_ARGUMENT", "options"));
    await assert.rejects(Embedder.load(7, { backend }), embedderError("INVALID_ARGUMENT", "model: ", "7"));
    await assert.rejects(
      Embedder.load(undefined, { backend }),
      embedderError("INVALID_ARGUMENT", "SEMANTIC_SEARCH_MODEL"),
    );
  });

  loadFails(
    "a post-processor whose ids have no row in the embedding table",
    "bert_mean",
    {
      "tokenizer.json": (json) => ({
        ...json,
        // Of what is not in the vocabulary the fallback makes this token, and it is none either.
        model: { ...json.model, unk_token: "[NONE]" },
        post_processor: { type: "BertProcessing", sep: ["[SEP]", 3], cls: ["[FAR]", 1411] },
      }),
    },
    {},
    ...["MODEL_INVALID", "tokenizer.json", "vocab_size"],
  );

  test(`${backend}: maxTokens without room for text`, async () => {
    const folder = await model("bert_mean");
    await assert.rejects(
      Embedder.load(folder, { backend, maxTokens: 2 }),
      embedderError("INVALID_ARGUMENT", "maxTokens", "2"),
    );
  });

  test(`${backend}: the model folder is missing, or is a file`, async () => {
    const folder = path.join(temporaryFolder(), "nowhere");
    await assert.rejects(Embedder.load(folder, { backend }), embedderError("MODEL_NOT_FOUND", folder));
    const file = path.join(await model("bert_mean"), "config.json");
    await assert.rejects(Embedder.load(file, { backend }), embedderError("MODEL_NOT_FOUND", file));
  });

  for (const file of ["config.json", "tokenizer.json", "model.safetensors", POOLING]) {
    loadFails(`${file} is missing`, "bert_mean", { [file]: null }, {}, "MODEL_NOT_FOUND", path.normalize(file));
  }
  loadFails(
    "a shard is missing",
    "bert_cls_f16",
    { "model-00002-of-00002.safetensors": null },
    {},
    "MODEL_NOT_FOUND",
    "00002-of-00002",
  );

  for (const [file, start] of [
    ["config.json", "{"],
    ["modules.json", '[{"type": "sentence_transformers.models.Transformer",'],
    [POOLING, "{"],
    ["sentence_bert_config.json", "{"],
    ["tokenizer_config.json", "{"],
    ["config_sentence_transformers.json", "{"],
  ]) {
    const content = `${start}\n  "a": [1, 2],\n  "b" 3 }`;
    const expected = ["MODEL_INVALID", path.normalize(file), "line 3", "column 7"];
    loadFails(`${file} is not JSON`, "bert_mean", { [file]: content }, {}, ...expected);
  }
  loadFails(
    "config.json is cut off",
    "bert_mean",
    { "config.json": '{\n  "model_type": "bert"' },
    {},
    "MODEL_INVALID",
    "config.json",
    "line 2",
    "column",
  );
  loadFails(
    "tokenizer.json is no tokenizer",
    "bert_mean",
    { "tokenizer.json": '{"model": {"type": "Guess"}}' },
    {},
    "MODEL_INVALID",
    "tokenizer.json",
  );

  loadFails(
    "an unknown model_type",
    "bert_mean",
    { "config.json": (config) => ({ ...config, model_type: "t5" }) },
    {},
    // The fallback takes the architecture from the graph, which was exported for another config.json.
    ...(backend === "onnx-js" ? ["MODEL_INVALID", "config.json"] : ["MODEL_UNSUPPORTED", "model_type", '"t5"', "bert"]),
  );
  loadFails(
    "a module that is not computed",
    "bert_mean",
    {
      "modules.json": (modules) => [
        ...modules.slice(0, 2),
        { ...modules[1], type: "sentence_transformers.models.Dropout" },
      ],
    },
    {},
    "MODEL_UNSUPPORTED",
    "Dropout",
  );
  loadFails(
    "pooling that nobody says",
    "bert_mean",
    { "modules.json": null, [POOLING]: null },
    {},
    "MODEL_UNSUPPORTED",
    'pooling: "cls"',
  );
  loadFails(
    "no pooling mode is set",
    "bert_mean",
    { [POOLING]: () => ({ pooling_mode_cls_token: false }) },
    {},
    "MODEL_INVALID",
    path.normalize(POOLING),
    "pooling mode",
  );
  loadFails(
    "an unknown pooling mode",
    "bert_mean",
    { [POOLING]: () => ({ pooling_mode: "median" }) },
    {},
    "MODEL_UNSUPPORTED",
    '"median"',
  );
  loadFails(
    "an unknown pooling mode beside a known one, in the older form",
    "bert_mean",
    { [POOLING]: (pooling) => ({ ...pooling, pooling_mode_attention: true }) },
    {},
    "MODEL_UNSUPPORTED",
    path.normalize(POOLING),
    "attention",
  );
  loadFails(
    "pooling of another width",
    "bert_mean",
    { [POOLING]: () => ({ word_embedding_dimension: 7, pooling_mode: "cls" }) },
    {},
    "MODEL_INVALID",
    "word_embedding_dimension",
    "7",
  );
  loadFails(
    "pooling that leaves the prompt out",
    "bert_mean",
    { [POOLING]: (pooling) => ({ ...pooling, include_prompt: false }) },
    { queryPrompt: "q" },
    "MODEL_UNSUPPORTED",
    "include_prompt",
  );
  loadFails(
    "a side to cut that is none",
    "bert_mean",
    { "tokenizer_config.json": (config) => ({ ...config, truncation_side: "middle" }) },
    {},
    "MODEL_INVALID",
    "tokenizer_config.json",
    "truncation_side",
    '"left" or "right"',
    '"middle"',
  );
  loadFails(
    "a default prompt that does not exist",
    "bert_mean",
    { "config_sentence_transformers.json": () => ({ prompts: { a: "b" }, default_prompt_name: "c" }) },
    {},
    "MODEL_INVALID",
    "default_prompt_name",
    '"c"',
  );
  loadFails(
    "token ids beyond the embedding table",
    "bert_mean",
    {
      "tokenizer.json": (tokenizer) => ({
        ...tokenizer,
        model: { ...tokenizer.model, vocab: { ...tokenizer.model.vocab, zebra: 99_999 } },
      }),
    },
    {},
    "MODEL_INVALID",
    "tokenizer.json",
    '"zebra"',
    "99999",
  );

  test(`${backend}: weights that are not numbers never become vectors`, async () => {
    const folder = await changedModel("bert_mean", {
      "model.safetensors": await damaged(({ header, data }) => {
        data.writeFloatLE(Number.NaN, wordEmbeddings(header).data_offsets[0]);
      }),
    });
    const loadAndEmbed = async () => {
      const broken = await Embedder.load(folder, { backend });
      try {
        // The token in the first row of the table.
        return await broken.embed(["[PAD]"]);
      } finally {
        await broken.close();
      }
    };
    // For the fallback's graph to fit the damaged file.
    await api.exportOnnx(folder);
    // The addon reads the weights itself and names the tensor; the fallback sees the result only.
    if (backend !== "onnx-js")
      await assert.rejects(loadAndEmbed(), embedderError("MODEL_INVALID", "word_embeddings", "NaN"));
    else await assert.rejects(loadAndEmbed(), embedderError("INFERENCE_FAILED", "NaN"));
  });
}

test("damaged safetensors are refused, with tensor, expected and found", async () => {
  const refuse = async (edit, ...parts) => {
    const folder = await changedModel("bert_mean", { "model.safetensors": await damaged(edit) });
    await assert.rejects(Embedder.load(folder, { backend: "onnx" }), embedderError("MODEL_INVALID", folder, ...parts));
  };
  await refuse(({ header }) => {
    const { name } = wordEmbeddings(header);
    header[`${name}.renamed`] = header[name];
    delete header[name];
  }, "word_embeddings");
  await refuse(
    ({ header }) => {
      header[wordEmbeddings(header).name].shape.reverse();
    },
    "word_embeddings",
    "expected",
    "found",
  );
  await refuse(
    ({ header }) => {
      header[wordEmbeddings(header).name].dtype = "I32";
    },
    "word_embeddings",
    "expected",
    "I32",
  );
  await refuse((file) => {
    file.data = file.data.subarray(0, file.data.length - 100);
  });
  await refuse(({ header }) => {
    wordEmbeddings(header).data_offsets[1] *= 1000;
  });
  const folder = await changedModel("bert_mean", { "model.safetensors": Buffer.from("ffffffffffffff7f7b7d", "hex") });
  await assert.rejects(Embedder.load(folder, { backend: "onnx" }), embedderError("MODEL_INVALID", "model.safetensors"));
});

test("the fallback lists the ONNX files that it looked for", async () => {
  const folder = await changedModel("bert_mean", { "semantic-search-native.onnx": null });
  const load = (options) => Embedder.load(folder, { backend: "onnx-js", ...options });
  await assert.rejects(load(), embedderError("MODEL_NOT_FOUND", folder, "onnx/model.onnx", "exportOnnx"));
  await assert.rejects(load({ dtype: "int8" }), embedderError("MODEL_NOT_FOUND", "model_quantized.onnx"));
});

test("the fallback refuses a file that is not an ONNX model", async () => {
  const folder = await changedModel("bert_mean", { "semantic-search-native.onnx": "not a protobuf" });
  await assert.rejects(
    Embedder.load(folder, { backend: "onnx-js" }),
    embedderError("MODEL_INVALID", "semantic-search-native.onnx"),
  );
});

test("the fallback refuses a graph that was exported for other weights", async () => {
  const weights = await damaged(({ header, data }) => {
    data.writeFloatLE(7, wordEmbeddings(header).data_offsets[0]);
  });
  const folder = await changedModel("bert_mean", { "model.safetensors": weights });
  const load = () => Embedder.load(folder, { backend: "onnx-js" });
  await assert.rejects(load(), embedderError("MODEL_INVALID", "semantic-search-native.onnx", "exportOnnx"));
  await api.exportOnnx(folder);
  await withEmbedder(folder, { backend: "onnx-js" }, (embedder) => embedder.embed(["works again"]));
});

test("an invalid model is an error at once, without falling back", async () => {
  const folder = await changedModel("bert_mean", { "config.json": null });
  await assert.rejects(
    Embedder.load(folder),
    (error) => error.code === "MODEL_NOT_FOUND" && !error.message.includes("tried before"),
  );
});

/** `model.safetensors` of the fixture, changed by `edit`. */
async function damaged(edit) {
  const file = decodeSafetensors(readFileSync(path.join(await model("bert_mean"), "model.safetensors")));
  edit(file);
  return encodeSafetensors(file);
}

function wordEmbeddings(header) {
  const name = Object.keys(header).find((tensor) => tensor.endsWith("word_embeddings.weight"));
  return { name, ...header[name] };
}
