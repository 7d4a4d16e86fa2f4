/** What a release on Linux needs besides Rust: the packages of `requirements.txt`, in the cache folder. */

import { copyFileSync, existsSync, readFileSync, rmSync } from "node:fs";
import * as path from "node:path";
import { ROOT, run } from "../scripts/setup.mjs";
import { cacheFolder } from "../scripts/starter-model.mjs";

/**
 * @param {{ PATH: string }} environment
 * @returns {Promise<{ [name: string]: string }>} what is changed of it
 */
export async function releaseTools({ PATH }) {
  if (process.platform !== "linux") return {};
  const list = path.join(ROOT, "release/requirements.txt");
  const folder = path.join(cacheFolder(), "release", "tools");
  const stamp = path.join(folder, "installed-list");
  if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== readFileSync(list, "utf8")) {
    rmSync(folder, { recursive: true, force: true });
    await run("python3", ["-m", "pip", "install", "--quiet", "--target", folder, "--requirement", list]);
    copyFileSync(list, stamp);
  }
  return { PATH: [path.join(folder, "bin"), PATH].join(path.delimiter), PYTHONPATH: folder };
}
