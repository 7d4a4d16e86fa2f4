/** The program of a single executable, which has only Node.js's own modules: the package lies beside it. */

const assert = require("node:assert/strict");
const { readFileSync } = require("node:fs");
const { createRequire } = require("node:module");

const { Embedder } = createRequire(process.execPath)("semantic-search-native");

async function main() {
  const embedder = await Embedder.load(process.env.MODEL, { backend: "onnx" });
  const [{ text, vector }] = JSON.parse(readFileSync(process.env.GOLDEN, "utf8"));
  const [actual] = await embedder.embed([text]);
  assert.ok(vector.every((value, index) => Math.abs(value - actual[index]) <= 1e-5));
  await embedder.close();
  // The fallback's process would run this program again.
  const refused = { code: "BACKEND_UNAVAILABLE", message: /onnx-js backend cannot start its process/ };
  await assert.rejects(Embedder.load(process.env.MODEL, { backend: "onnx-js" }), refused);
  console.log("done");
}

main();
