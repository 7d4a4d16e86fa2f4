/** The cache folder: one rule for the scripts, the benchmarks and MLX. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { packageCacheFolder } from "../lib/cache_folder.js";
import { cacheFolder, starterModelFolder } from "../scripts/starter-model.mjs";
import { ROOT } from "./support/models.mjs";

const LINUX_HOME = { HOME: "/home/ann" };
const MAC_HOME = { HOME: "/Users/ann" };
const WINDOWS_HOME = { USERPROFILE: "C:\\Users\\ann" };
const LOCAL = { LOCALAPPDATA: "C:\\Users\\ann\\AppData\\Local" };
const NAME = "semantic-search-native";

for (const [platform, env, expected] of [
  ["linux", LINUX_HOME, `/home/ann/.cache/${NAME}`],
  ["linux", { ...LINUX_HOME, XDG_CACHE_HOME: "/big/cache" }, `/big/cache/${NAME}`],
  ["linux", { ...LINUX_HOME, XDG_CACHE_HOME: "" }, `/home/ann/.cache/${NAME}`],
  ["linux", { ...LINUX_HOME, ...LOCAL }, `/home/ann/.cache/${NAME}`],
  ["linux", { ...LINUX_HOME, XDG_CACHE_HOME: "/x", SEMANTIC_SEARCH_CACHE: "/c" }, "/c"],
  ["linux", { ...LINUX_HOME, SEMANTIC_SEARCH_CACHE: "" }, `/home/ann/.cache/${NAME}`],
  ["darwin", MAC_HOME, `/Users/ann/Library/Caches/${NAME}`],
  ["darwin", { ...MAC_HOME, XDG_CACHE_HOME: "/big/cache" }, `/big/cache/${NAME}`],
  ["darwin", { ...MAC_HOME, SEMANTIC_SEARCH_CACHE: "/c" }, "/c"],
  ["win32", { ...WINDOWS_HOME, ...LOCAL }, `C:\\Users\\ann\\AppData\\Local\\${NAME}`],
  ["win32", WINDOWS_HOME, `C:\\Users\\ann\\AppData\\Local\\${NAME}`],
  ["win32", { ...WINDOWS_HOME, ...LOCAL, XDG_CACHE_HOME: "D:\\x" }, `C:\\Users\\ann\\AppData\\Local\\${NAME}`],
  ["win32", { ...LOCAL, SEMANTIC_SEARCH_CACHE: "D:\\c" }, "D:\\c"],
]) {
  test(`${platform}, ${JSON.stringify(env)}: ${expected}`, () => {
    assert.equal(packageCacheFolder(env, platform), expected);
  });
}

test("the starter model lies there", () => {
  const folder = packageCacheFolder();
  assert.equal(cacheFolder(), folder);
  assert.equal(starterModelFolder(), path.join(folder, "models", "all-MiniLM-L6-v2"));
});

test("the cache folder is computed in one place", () => {
  const sources = ["src", "lib", "cli", "scripts", "benches", "xtask/src"].flatMap((folder) =>
    readdirSync(path.join(ROOT, folder), { recursive: true })
      .map((name) => `${folder}/${String(name).split(path.sep).join("/")}`)
      .filter((name) => /\.(rs|ts|js|mjs)$/.test(name) && !/node_modules|\/target\//.test(name)),
  );
  const found = sources.filter((name) =>
    /XDG_CACHE_HOME\b(?!`)|LOCALAPPDATA|Library\/Caches/.test(readFileSync(path.join(ROOT, name), "utf8")),
  );
  // The first is the Hub's own cache, which Python's libraries share.
  assert.deepEqual(found.sort(), ["lib/cache_folder.js", "lib/hub/settings.ts"]);
});
