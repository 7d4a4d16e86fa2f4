// JavaScript, not TypeScript: the scripts run it before anything is compiled.

const os = require("node:os");
const path = require("node:path");

/**
 * This package's cache folder: the one rule for what a GPU's results were like, the static models of code search, the
 * starter model, MLX and what benchmarks bring.
 * `SEMANTIC_SEARCH_CACHE`, or else `semantic-search-native` where the system wants caches. The Hub's cache goes by the
 * Hub's rule, see `hub/settings.ts`.
 *
 * @param {NodeJS.ProcessEnv} [env]
 * @param {NodeJS.Platform} [platform]
 * @returns {string | undefined} `undefined` where the user has no home
 */
function packageCacheFolder(env = process.env, platform = process.platform) {
  if (env.SEMANTIC_SEARCH_CACHE) return env.SEMANTIC_SEARCH_CACHE;
  const isWindows = platform === "win32";
  const { join } = isWindows ? path.win32 : path.posix;
  const userCache = isWindows ? env.LOCALAPPDATA : env.XDG_CACHE_HOME;
  if (userCache) return join(userCache, "semantic-search-native");
  const home = env[isWindows ? "USERPROFILE" : "HOME"] || homeFolder();
  const inHome = isWindows ? "AppData/Local" : platform === "darwin" ? "Library/Caches" : ".cache";
  return home && join(home, inHome, "semantic-search-native");
}

function homeFolder() {
  try {
    return os.homedir();
  } catch {
    // A process of a container may have a user of no name.
    return undefined;
  }
}

module.exports = { packageCacheFolder };
