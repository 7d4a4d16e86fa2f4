/**
 * Brings a GPU that computes on the CPU: SwiftShader, a Vulkan driver, and a Vulkan loader that finds it, both from
 * Debian's package of Chromium. apt checks the package; it is unpacked into the cache folder, so nothing is installed.
 *
 * Node built-ins only: `.ci/run` starts it before anything is installed.
 */

import { spawnSync } from "node:child_process";
import { existsSync, promises as fs } from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { cacheFolder } from "./starter-model.mjs";

const PACKAGE = "chromium-common";
const PACKAGE_FOLDER = "usr/lib/chromium";
const LOADER = "libvulkan.so.1";
const DRIVER = "vk_swiftshader_icd.json";
const FILES = [LOADER, DRIVER, "libvk_swiftshader.so"];

/** Where the software GPU lies on this machine. */
export function softwareGpuFolder() {
  return path.join(cacheFolder(), "software-gpu");
}

/**
 * Completes the folder, which is there as a whole or not at all. The parameters are for tests.
 *
 * @param {object} [settings]
 * @param {string} [settings.folder]
 * @param {string} [settings.packageName]
 * @returns {Promise<{ folder: string, reason?: undefined } | { folder?: undefined, reason: string }>} `reason`: why there
 * is no software GPU on this machine
 */
export async function bringSoftwareGpu({ folder = softwareGpuFolder(), packageName = PACKAGE } = {}) {
  if (process.platform !== "linux" || process.arch !== "x64") return { reason: "no software GPU: it is for Linux x64" };
  if (existsSync(folder)) return { folder };
  for (const program of ["apt-get", "dpkg-deb"]) {
    if (spawnSync(program, ["--version"]).status !== 0) return { reason: `no software GPU: ${program} is needed` };
  }
  await fs.mkdir(path.dirname(folder), { recursive: true });
  const partial = await fs.mkdtemp(`${folder}.partial-`);
  try {
    // Comes into the current folder, and needs no root.
    const download = spawnSync("apt-get", ["download", packageName], { cwd: partial, encoding: "utf8" });
    if (download.status !== 0) {
      const why = download.error?.message ?? download.stderr.trim().split("\n").at(-1);
      return { reason: `no software GPU: apt-get download ${packageName}: ${why} (apt-get update may help)` };
    }
    const [archive] = await fs.readdir(partial);
    const unpack = spawnSync("dpkg-deb", ["--extract", archive, "package"], { cwd: partial, encoding: "utf8" });
    if (unpack.status !== 0) return { reason: `no software GPU: ${unpack.error?.message ?? unpack.stderr.trim()}` };
    const complete = path.join(partial, "complete");
    await fs.mkdir(complete);
    for (const name of FILES) {
      const file = path.join(partial, "package", PACKAGE_FOLDER, name);
      if (!existsSync(file)) return { reason: `no software GPU: ${archive} has no ${PACKAGE_FOLDER}/${name}` };
      await fs.rename(file, path.join(complete, name));
    }
    await fs.rename(complete, folder).catch((error) => {
      // Another process was faster.
      if (!existsSync(folder)) throw error;
    });
    return { folder };
  } finally {
    await fs.rm(partial, { recursive: true, force: true });
  }
}

/**
 * The environment in which a process sees the software GPU and no other. It must be there when the process starts.
 *
 * @param {string} folder of the software GPU
 */
export function softwareGpuEnvironment(folder) {
  const [loader, driver] = [LOADER, DRIVER].map((name) => path.join(folder, name));
  return {
    LD_LIBRARY_PATH: [folder, process.env.LD_LIBRARY_PATH].filter(Boolean).join(path.delimiter),
    VK_DRIVER_FILES: driver,
    // The same for loaders before 1.3.207.
    VK_ICD_FILENAMES: driver,
    // Installed layers change what a driver does.
    VK_LOADER_LAYERS_DISABLE: "~all~",
    // For the library of tests/vulkan_faults, which may stand before it.
    VULKAN_LOADER: loader,
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { folder, reason } = await bringSoftwareGpu();
  console.log(folder ?? reason);
  process.exitCode = folder ? 0 : 1;
}
