/** Writes tiny ONNX models: token states are rows of a table, looked up by `input_ids`. */

const FLOAT = 1;
const TYPES = { int64: 7, int32: 6 };

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Buffer.from([...bytes, value]);
}

/** One protobuf field: a number, or anything with bytes. */
function field(number, value) {
  if (typeof value === "number") return Buffer.concat([varint(number * 8), varint(value)]);
  const bytes = Buffer.from(value);
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
}

const message = (...fields) => Buffer.concat(fields);

function valueInfo(name, elementType, dimensions) {
  const shape = dimensions.map((dimension) => field(1, field(typeof dimension === "number" ? 1 : 2, dimension)));
  const tensor = message(field(1, elementType), field(2, message(...shape)));
  return message(field(1, name), field(2, field(1, tensor)));
}

/**
 * @param {object} graph
 * @param {Float32Array} graph.table [vocabulary × width]
 * @param {number} graph.width
 * @param {{ [name: string]: "int64" | "int32" }} [graph.inputs]
 * @param {string} [graph.output] its name
 * @param {boolean} [graph.isPooled] the output is the mean over tokens
 * @param {string} [graph.externalData] name of the file that holds the table
 */
export function tableModel({
  table,
  width,
  inputs = { input_ids: "int64" },
  output = "last_hidden_state",
  isPooled = false,
  externalData,
}) {
  const bytes = Buffer.from(table.buffer, table.byteOffset, table.byteLength);
  const entry = (key, value) => field(13, message(field(1, key), field(2, value)));
  const initializer = message(
    field(1, table.length / width),
    field(1, width),
    field(2, FLOAT),
    field(8, "table"),
    ...(externalData
      ? [entry("location", externalData), entry("offset", "0"), entry("length", String(bytes.length)), field(14, 1)]
      : [field(9, bytes)]),
  );
  const node = (operator, from, to, ...attributes) =>
    field(
      1,
      message(
        ...from.map((name) => field(1, name)),
        field(2, to),
        field(4, operator),
        ...attributes.map((attribute) => field(5, attribute)),
      ),
    );
  const ids = inputs.input_ids ? "input_ids" : Object.keys(inputs)[0];
  const nodes = [node("Gather", ["table", ids], isPooled ? "states" : output)];
  if (isPooled) {
    const axes = message(field(1, "axes"), field(8, 1), field(20, 7));
    const keepDimensions = message(field(1, "keepdims"), field(3, 0), field(20, 2));
    nodes.push(node("ReduceMean", ["states"], output, axes, keepDimensions));
  }
  const graph = message(
    ...nodes,
    field(2, "table"),
    field(5, initializer),
    ...Object.entries(inputs).map(([name, type]) => field(11, valueInfo(name, TYPES[type], ["batch", "tokens"]))),
    field(12, valueInfo(output, FLOAT, isPooled ? ["batch", width] : ["batch", "tokens", width])),
  );
  return message(field(1, 8), field(7, graph), field(8, message(field(1, ""), field(2, 17))));
}
