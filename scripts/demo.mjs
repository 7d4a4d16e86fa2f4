/** `npm run demo`: embeds this repository's own functions and answers three questions about them. */

import { functionsBelow } from "./functions.mjs";
import {
  addonIsStale,
  buildAddon,
  compileTypeScript,
  installPackages,
  installStarterModel,
  ROOT,
  reportFailure,
  rustEnvironment,
} from "./setup.mjs";

const QUESTIONS = [
  "Where is a text that is too long cut to the token limit?",
  "How is an interrupted download resumed and its checksum verified?",
  "What happens when the native addon cannot be loaded?",
];
/** Functions per call: small enough for a progress bar that moves. */
const SLICE = 32;

async function setUp() {
  await installPackages();
  await compileTypeScript();
  const rust = rustEnvironment();
  if (!rust) {
    console.log("no Rust toolchain found: using the JavaScript fallback (slower; install Rust for the native addon)");
  } else if (addonIsStale()) {
    console.log("building the native addon (some minutes the first time)");
    await buildAddon(rust);
  }
  return installStarterModel();
}

function dot(a, b) {
  return a.reduce((sum, value, index) => sum + value * b[index], 0);
}

async function demo() {
  const model = await setUp();
  const { Embedder } = await import("../dist/embedder.js");
  const { clearStatus, progressBar, showStatus } = await import("../dist/cli/terminal.js");
  const embedder = await Embedder.load(model);
  const functions = functionsBelow(ROOT);

  const vectors = [];
  const start = performance.now();
  for (let index = 0; index < functions.length; index += SLICE) {
    const slice = functions.slice(index, index + SLICE);
    vectors.push(...(await embedder.embed(slice.map(({ file, text }) => `${file}\n${text}`))));
    showStatus(() => `${progressBar(vectors.length / functions.length)} ${vectors.length}/${functions.length}`);
  }
  clearStatus();
  const seconds = (performance.now() - start) / 1000;

  console.log(`backend    ${embedder.backend}${embedder.isGpu ? " (GPU)" : ""}`);
  if (embedder.fallbackReason) console.log(`           because ${embedder.fallbackReason}`);
  console.log(`model      ${model}`);
  console.log(`dimension  ${embedder.dimension}`);
  console.log(
    `speed      ${functions.length} functions in ${seconds.toFixed(1)} s: ${(functions.length / seconds).toFixed(1)} texts per second`,
  );
  if (embedder.truncatedTexts > 0) {
    console.log(`truncated  ${embedder.truncatedTexts} functions are longer than ${embedder.maxTokens} tokens`);
  }
  for (const question of QUESTIONS) {
    const query = await embedder.embedQuery(question);
    const ranked = functions.map((found, index) => ({ ...found, score: dot(query, vectors[index]) }));
    ranked.sort((a, b) => b.score - a.score);
    console.log(`\n${question}`);
    for (const { file, line, score } of ranked.slice(0, 3)) console.log(`  ${score.toFixed(3)}  ${file}:${line}`);
  }
  await embedder.close();
}

demo().catch((error) => {
  reportFailure(error);
  process.exitCode = 1;
});
