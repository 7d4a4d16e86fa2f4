/** A GPU that fails: see `tests/vulkan_faults/lib.rs`. */

import * as path from "node:path";

/**
 * The environment of a process whose software GPU has faults, in a process that `npm test -- --only=webgpu` started.
 *
 * @param {string} [faults] as in `VULKAN_FAULTS`, none by default
 * @param {NodeJS.ProcessEnv} [env] what it has beside
 */
export function withVulkanFaults(faults = "", env = process.env) {
  const { SEMANTIC_SEARCH_VULKAN_FAULTS: library, LD_LIBRARY_PATH } = env;
  if (!library) throw new Error("SEMANTIC_SEARCH_VULKAN_FAULTS is not set: run npm test -- --only=webgpu");
  const searched = [path.dirname(library), LD_LIBRARY_PATH].join(path.delimiter);
  return { ...env, LD_LIBRARY_PATH: searched, VULKAN_FAULTS: faults };
}
