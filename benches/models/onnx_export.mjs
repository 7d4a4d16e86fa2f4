/**
 * ONNX files of a model folder that do not come from this package: the usual export, for peers that need one, and a graph of
 * the matrix products alone, as the limit of what this machine can reach.
 */

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { OnnxGraph } from "../../scripts/onnx-graph.mjs";
import { float32Tensors } from "../../scripts/safetensors.mjs";

/** What the graphs need to know about a model, under common names. */
function readModel(folder) {
  const config = JSON.parse(readFileSync(path.join(folder, "config.json"), "utf8"));
  const weights = float32Tensors(path.join(folder, "model.safetensors"));
  const isNomic = config.model_type === "nomic_bert";
  const width = config.n_embd ?? config.hidden_size;
  const heads = config.n_head ?? config.num_attention_heads;
  return {
    weights,
    isNomic,
    width,
    heads,
    headWidth: width / heads,
    layers: config.n_layer ?? config.num_hidden_layers,
    inner: config.n_inner ?? config.intermediate_size,
    epsilon: config.layer_norm_epsilon ?? config.layer_norm_eps,
    rotaryBase: config.rotary_emb_base,
  };
}

/** [rows, columns] → [columns, rows], in blocks that fit into the processor's cache. */
function transposed(values, rows, columns) {
  const block = 32;
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row += block) {
    for (let column = 0; column < columns; column += block) {
      for (let r = row; r < Math.min(row + block, rows); r++) {
        for (let c = column; c < Math.min(column + block, columns); c++) result[c * rows + r] = values[r * columns + c];
      }
    }
  }
  return result;
}

/**
 * Writes the encoder as the exporters of PyTorch write it for the Hub: plain operators, one `MatMul` per linear layer with
 * the transposed weight inside the file, inputs `input_ids`, `attention_mask` and `token_type_ids`, all
 * `[batch, length]`, output `last_hidden_state`.
 *
 * It is a definition of its own, beside the package's `export`: peers pad their batches and need the mask, which that graph
 * has no input for, and are to be measured on the operators that they would find on the Hub.
 */
export function exportEncoder(folder, file) {
  const model = readModel(folder);
  const { weights, isNomic, width, heads, headWidth, layers, epsilon } = model;
  const graph = new OnnxGraph();
  const shape = ["batch", "length"];
  const ids = graph.input("input_ids", "int64", shape);
  const mask = graph.input("attention_mask", "int64", shape);
  const types = graph.input("token_type_ids", "int64", shape);

  const weight = (name) => graph.weight(name, weights.get(name).shape, weights.get(name).values());
  const scalar = (name, value) => graph.floats(name, [], [value]);
  const binary = (operator, a, b) => graph.node(operator, [a, b]);
  const linear = (x, name) => {
    const [rows, columns] = weights.get(`${name}.weight`).shape;
    const matrix = `${name}.weight_transposed`;
    graph.weight(matrix, [columns, rows], transposed(weights.get(`${name}.weight`).values(), rows, columns));
    const product = binary("MatMul", x, matrix);
    return weights.has(`${name}.bias`) ? binary("Add", weight(`${name}.bias`), product) : product;
  };
  const norm = (x, name) =>
    graph.node("LayerNormalization", [x, weight(`${name}.weight`), weight(`${name}.bias`)], {
      axis: -1,
      epsilon: { float: epsilon },
    });
  const slice = (x, from, to, axis) =>
    graph.node("Slice", [
      x,
      graph.ints(`at_${from}`, [from]),
      graph.ints(`at_${to}`, [to]),
      graph.ints(`axis_${axis}`, [axis]),
    ]);

  const lengthOf = () => {
    const both = graph.node("Shape", [ids]);
    return graph.node("Gather", [both, graph.ints("second", [1], [])], { axis: 0 });
  };
  const length = lengthOf();
  const positions = graph.node("Range", [graph.ints("zero", [0], []), length, graph.ints("one", [1], [])]);

  // Embeddings.
  let x = binary(
    "Add",
    graph.node("Gather", [weight("embeddings.word_embeddings.weight"), ids]),
    graph.node("Gather", [weight("embeddings.token_type_embeddings.weight"), types]),
  );
  if (!isNomic) {
    x = binary("Add", x, graph.node("Gather", [weight("embeddings.position_embeddings.weight"), positions]));
  }
  x = norm(x, isNomic ? "emb_ln" : "embeddings.LayerNorm");

  // 0 for tokens, the least float for padding: [batch, 1, 1, length].
  const row = graph.node("Unsqueeze", [mask, graph.ints("axis_1", [1])]);
  const visible = graph.node("Cast", [graph.node("Unsqueeze", [row, graph.ints("axis_2", [2])])], { to: 1 });
  const hidden = binary("Sub", scalar("one_float", 1), visible);
  const bias = binary("Mul", hidden, scalar("least", -3.4028234663852886e38));

  const rotation = isNomic && rotationOf(graph, positions, model);
  const split = graph.ints("head_shape", [0, 0, heads, headWidth]);
  const joined = graph.ints("joined_shape", [0, 0, width]);
  const toHeads = (part) => graph.node("Transpose", [graph.node("Reshape", [part, split])], { perm: [0, 2, 1, 3] });
  const rotate = (part) => {
    const half = headWidth / 2;
    const turned = graph.node(
      "Concat",
      [graph.node("Neg", [slice(part, half, headWidth, 3)]), slice(part, 0, half, 3)],
      { axis: -1 },
    );
    return binary("Add", binary("Mul", part, rotation.cos), binary("Mul", turned, rotation.sin));
  };
  const attention = (q, k, v) => {
    // [batch, heads, length, length]
    const scores = binary("MatMul", q, graph.node("Transpose", [k], { perm: [0, 1, 3, 2] }));
    const scaled = binary("Div", scores, scalar("root", Math.sqrt(headWidth)));
    const shares = graph.node("Softmax", [binary("Add", scaled, bias)], { axis: -1 });
    const mixed = graph.node("Transpose", [binary("MatMul", shares, v)], { perm: [0, 2, 1, 3] });
    return graph.node("Reshape", [mixed, joined]);
  };
  const gelu = (values) => {
    const erf = graph.node("Erf", [binary("Div", values, scalar("root_two", Math.SQRT2))]);
    return binary("Mul", binary("Mul", values, binary("Add", erf, scalar("one_float", 1))), scalar("a_half", 0.5));
  };

  for (let layer = 0; layer < layers; layer++) {
    if (isNomic) {
      const name = `encoder.layers.${layer}`;
      const parts = graph.node(
        "Split",
        [linear(x, `${name}.attn.Wqkv`), graph.ints("thirds", [width, width, width])],
        {
          axis: -1,
        },
        { outputs: 3 },
      );
      const [q, k, v] = parts.map(toHeads);
      const attended = linear(attention(rotate(q), rotate(k), v), `${name}.attn.out_proj`);
      x = norm(binary("Add", attended, x), `${name}.norm1`);
      const gate = linear(x, `${name}.mlp.fc12`);
      const silu = binary("Mul", gate, graph.node("Sigmoid", [gate]));
      const output = linear(binary("Mul", linear(x, `${name}.mlp.fc11`), silu), `${name}.mlp.fc2`);
      x = norm(binary("Add", output, x), `${name}.norm2`);
    } else {
      const name = `encoder.layer.${layer}`;
      const [q, k, v] = ["query", "key", "value"].map((part) => toHeads(linear(x, `${name}.attention.self.${part}`)));
      const attended = linear(attention(q, k, v), `${name}.attention.output.dense`);
      x = norm(binary("Add", attended, x), `${name}.attention.output.LayerNorm`);
      const output = linear(gelu(linear(x, `${name}.intermediate.dense`)), `${name}.output.dense`);
      x = norm(binary("Add", output, x), `${name}.output.LayerNorm`);
    }
  }
  graph.node("Identity", [x], {}, { name: "last_hidden_state" });
  graph.output("last_hidden_state", ["batch", "length", width]);
  graph.write(file);
}

/** Cosines and sines of the rotary angles, [length, head width], each angle twice. */
function rotationOf(graph, positions, { headWidth, rotaryBase }) {
  const half = headWidth / 2;
  const frequencies = Array.from({ length: half }, (_, i) => rotaryBase ** ((-2 * i) / headWidth));
  const column = graph.node("Unsqueeze", [graph.node("Cast", [positions], { to: 1 }), graph.ints("axis_1", [1])]);
  const angles = graph.node("Mul", [column, graph.floats("frequencies", [1, half], frequencies)]);
  const twice = graph.node("Concat", [angles, angles], { axis: -1 });
  return { cos: graph.node("Cos", [twice]), sin: graph.node("Sin", [twice]) };
}

/**
 * Writes a graph of the matrix products alone that a batch of `texts` texts of equal length needs, `tokens` tokens in all.
 * The weights are those of `model.safetensors`, beside which `file` has to lie.
 *
 * With `cls` the last layer computes its query, output projection and feed-forward for one token of each text only, since
 * nobody reads the others. Inputs: `tokens` [tokens, width], `firsts` [texts, width] (with `cls`), `heads`
 * [texts · heads, length, head width] and `heads_transposed`. Within a layer the products are chained by sums and slices,
 * which cost next to nothing; no layer reads another's result, so that no value grows or vanishes.
 */
export function exportProducts(folder, file, { cls }) {
  const { weights, isNomic, width, headWidth, layers } = readModel(folder);
  const graph = new OnnxGraph();
  const all = graph.input("tokens", "float", ["tokens", width]);
  const firsts = cls ? graph.input("firsts", "float", ["texts", width]) : null;
  const heads = graph.input("heads", "float", ["text_heads", "length", headWidth]);
  const headsTransposed = graph.input("heads_transposed", "float", ["text_heads", headWidth, "length"]);
  const firstHeads = cls ? graph.input("first_heads", "float", ["text_heads", 1, headWidth]) : null;

  /** x · Wᵀ, for rows `from` to `to` of the weight. */
  const product = (x, name, from = 0, to = weights.get(`${name}.weight`).shape[0]) => {
    const { shape, offset } = weights.get(`${name}.weight`);
    const rowBytes = 4 * shape[1];
    const part = graph.externalWeight(`${name}.weight_${from}`, [to - from, shape[1]], {
      location: "model.safetensors",
      offset: offset + from * rowBytes,
      length: (to - from) * rowBytes,
    });
    return graph.node("Gemm", [x, part], { transB: 1 });
  };
  const add = (a, b) => graph.node("Add", [a, b]);
  const slice = (x) =>
    graph.node("Slice", [x, graph.ints("start", [0]), graph.ints("end", [width]), graph.ints("axis", [1])]);

  const sums = { tokens: null, firsts: null };
  const collect = (key, value) => {
    sums[key] = sums[key] === null ? value : add(sums[key], value);
  };
  let mixed = heads;
  for (let layer = 0; layer < layers; layer++) {
    const isPruned = cls && layer === layers - 1;
    const x = isPruned ? firsts : all;
    const name = isNomic ? `encoder.layers.${layer}` : `encoder.layer.${layer}`;
    let projected;
    if (isNomic && !isPruned) {
      projected = slice(product(x, `${name}.attn.Wqkv`));
    } else {
      const [query, key, value] = isNomic
        ? [0, 1, 2].map((part) => [`${name}.attn.Wqkv`, part * width, (part + 1) * width])
        : ["query", "key", "value"].map((part) => [`${name}.attention.self.${part}`]);
      projected = product(x, ...query);
      const others = add(product(all, ...key), product(all, ...value));
      if (isPruned) collect("tokens", others);
      else projected = add(projected, others);
    }
    // Queries with keys, then shares with values.
    const queries = isPruned
      ? add(
          firstHeads,
          graph.node("Slice", [mixed, graph.ints("start", [0]), graph.ints("first_end", [1]), graph.ints("axis", [1])]),
        )
      : mixed;
    mixed = graph.node("MatMul", [graph.node("MatMul", [queries, headsTransposed]), heads]);
    const attended = product(projected, isNomic ? `${name}.attn.out_proj` : `${name}.attention.output.dense`);
    const inner = isNomic
      ? add(product(attended, `${name}.mlp.fc11`), product(attended, `${name}.mlp.fc12`))
      : product(attended, `${name}.intermediate.dense`);
    collect(isPruned ? "firsts" : "tokens", product(inner, isNomic ? `${name}.mlp.fc2` : `${name}.output.dense`));
  }
  const outputs = { tokens_out: sums.tokens, heads_out: mixed, ...(cls && { firsts_out: sums.firsts }) };
  for (const [name, value] of Object.entries(outputs)) {
    graph.node("Identity", [value], {}, { name });
    graph.output(name, name === "heads_out" ? ["text_heads", "rows", headWidth] : ["rows", width]);
  }
  graph.write(file);
}
