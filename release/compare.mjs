/**
 * How large this package and others are once installed, how long they take to install, and how long a new process takes to
 * its first vector: from the same registry on this machine, one after the other, without install scripts.
 */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { Contestant } from "../benches/contestants/contestant.mjs";
import { prepareModel } from "../benches/models/prepare.mjs";
import { ROOT } from "../scripts/setup.mjs";
import { sizeOf } from "./inspect.mjs";
import { MANIFEST } from "./platforms.mjs";
import { installInto, publishLocally, startRegistry } from "./registry.mjs";

const { dependencies: PEERS } = JSON.parse(
  readFileSync(path.join(ROOT, "benches/contestants/requirements/package.json"), "utf8"),
);
/** Starts of which the fastest counts. */
const STARTS = 5;

/** Driver in `benches/drivers/`, and its setup for a folder with the package installed; LanceDB embeds nothing itself. */
const COMPARED = {
  [MANIFEST.name]: {
    version: MANIFEST.version,
    driver: "ours.mjs",
    setup: (folder) => ({ package: path.join(folder, "node_modules", MANIFEST.name), options: { backend: "onnx" } }),
  },
  "@huggingface/transformers": {
    version: PEERS["@huggingface/transformers"],
    driver: "transformers_js.mjs",
    setup: (folder) => ({ npm: folder, dtype: "fp32" }),
  },
  fastembed: { version: PEERS.fastembed, driver: "fastembed_js.mjs", setup: (folder) => ({ npm: folder }) },
  "@lancedb/lancedb": { version: "0.39.0" },
};

/**
 * @param {string[]} archives packages of this release
 * @returns {Promise<string[]>} a Markdown table
 */
export async function compareInstallation(archives) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "compare-"));
  const registry = await startRegistry({ folder, isOffline: false });
  try {
    await publishLocally(archives, registry);
    const model = await prepareModel("minilm", { maxTokens: 256, forPeers: false });
    const rows = [];
    for (const [name, peer] of Object.entries(COMPARED)) {
      // The first installation brings the packages into the registry.
      await install(path.join(folder, "warm"), name, peer, registry);
      const user = path.join(folder, "user");
      const installSeconds = await install(user, name, peer, registry);
      const seconds = peer.driver && (await firstVector(peer, user, model, folder));
      const packages = JSON.parse(readFileSync(path.join(user, "node_modules/.package-lock.json"), "utf8")).packages;
      rows.push([
        `${name} ${peer.version}`,
        `${(sizeOf(path.join(user, "node_modules")) / 1e6).toFixed(0)} MB`,
        Object.keys(packages).length,
        `${installSeconds.toFixed(1)} s`,
        seconds ? `${seconds.toFixed(2)} s` : "",
      ]);
    }
    const header = ["package", "installed", "packages", "npm install", "start to first vector"];
    return [header, header.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`);
  } finally {
    await registry.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Seconds of an installation into an empty folder. */
async function install(folder, name, { version }, registry) {
  rmSync(folder, { recursive: true, force: true });
  const start = performance.now();
  await installInto(folder, { [name]: version }, registry);
  return (performance.now() - start) / 1000;
}

/** Seconds from the start of a process to its first vector, with the files in the system's cache. */
async function firstVector({ driver, setup }, user, model, folder) {
  const texts = path.join(folder, "texts.json");
  writeFileSync(texts, JSON.stringify({ first: "function add(a, b) { return a + b }" }));
  const settings = { ...setup(user), model: model.folder, pooling: model.pooling, maxTokens: 256, texts };
  const seconds = [];
  for (let start = 0; start < STARTS; start++) {
    const args = [path.join(ROOT, "benches/drivers", driver), JSON.stringify(settings)];
    const contestant = await Contestant.start(process.execPath, args, { ORT_DISABLE_TELEMETRY: "1" });
    const { refused } = contestant.introduction;
    await contestant.end();
    if (refused) throw new Error(`${driver}: ${refused}`);
    seconds.push(contestant.coldStart);
  }
  return Math.min(...seconds);
}
