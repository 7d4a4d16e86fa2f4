/** Writes tiny ONNX models: token states are rows of a table, looked up by `input_ids`. */

import { OnnxGraph } from "../../scripts/onnx-graph.mjs";

/**
 * @param {object} graph
 * @param {Float32Array} graph.table [vocabulary × width]
 * @param {number} graph.width
 * @param {{ [name: string]: "int64" | "int32" }} [graph.inputs]
 * @param {string} [graph.output] its name
 * @param {boolean} [graph.isPooled] the output is the mean over tokens
 * @param {string} [graph.externalData] name of the file that holds the table
 * @param {string} [graph.lookUp] the input whose values are rows of the table
 */
export function tableModel({
  table,
  width,
  inputs = { input_ids: "int64" },
  output = "last_hidden_state",
  isPooled = false,
  externalData,
  lookUp = inputs.input_ids ? "input_ids" : Object.keys(inputs)[0],
}) {
  const graph = new OnnxGraph();
  for (const [name, type] of Object.entries(inputs)) graph.input(name, type, ["batch", "tokens"]);
  const shape = [table.length / width, width];
  if (externalData) {
    graph.externalWeight("table", shape, { location: externalData, offset: 0, length: table.byteLength });
  } else graph.weight("table", shape, table);
  const states = graph.node("Gather", ["table", lookUp], {}, { name: isPooled ? "states" : output });
  if (isPooled) graph.node("ReduceMean", [states], { axes: [1], keepdims: 0 }, { name: output });
  graph.output(output, isPooled ? ["batch", width] : ["batch", "tokens", width]);
  return Buffer.concat(graph.parts());
}
