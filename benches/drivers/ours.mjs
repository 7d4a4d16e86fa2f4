/** This package; `setup.options` are those of `Embedder.load`. */

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { serve } from "./protocol.mjs";

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc");

await serve(async ({ package: folder, model, maxTokens, threads, options }) => {
  const { Embedder } = createRequire(import.meta.url)(path.join(folder, "dist/embedder.js"));
  const { version } = JSON.parse(readFileSync(path.join(folder, "package.json"), "utf8"));
  const memoryBeforeLoad = process.memoryUsage.rss();
  const load = () => Embedder.load(model, { maxTokens, threads, ...options });
  let embedder = await load();
  const answers = {
    /** Seconds of the same query, over and over. */
    cached: async ({ runs }, [text]) => {
      const seconds = [];
      for (let run = 0; run < runs; run++) {
        const start = performance.now();
        await embedder.embedQuery(text);
        seconds.push((performance.now() - start) / 1000);
      }
      return seconds;
    },
    /**
     * Seconds of a call with many texts minus those of a call with one: the cost of passing texts in and vectors out. The
     * texts are as long as the given ones on average, but blank and equal, so that there is little to compute.
     */
    boundary: async (_, texts) => {
      const time = async (list) => {
        const start = performance.now();
        await embedder.embed(list);
        return (performance.now() - start) / 1000;
      };
      const blank = " ".repeat(texts.join("").length / texts.length);
      const difference = (await time(texts.map(() => blank))) - (await time([blank]));
      return { seconds: Math.max(0, difference) };
    },
    /** Collects garbage, so that memory tells what is in use. */
    collect: async () => {
      collectGarbage();
      return {};
    },
    load: async () => {
      embedder = await load();
      return {};
    },
    close: async () => {
      await embedder.close();
      return {};
    },
  };
  return {
    name: `semantic-search-native ${version} (${embedder.backend})`,
    device: embedder.isGpu ? "gpu" : "cpu",
    details: { memoryBeforeLoad, adapter: (await embedder.info()).adapter },
    embed: (texts) => embedder.embed(texts),
    embedQuery: (text) => embedder.embedQuery(text),
    answer: (request, texts) => answers[request.want](request, texts),
  };
});
