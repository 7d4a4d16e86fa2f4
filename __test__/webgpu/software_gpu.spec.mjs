/** What becomes of the software GPU's folder where its package cannot be had. */

import assert from "node:assert/strict";
import { mkdirSync, readdirSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { bringSoftwareGpu, softwareGpuEnvironment } from "../../scripts/software-gpu.mjs";
import { temporaryFolder } from "../support/models.mjs";

test("a package that apt does not know is a reason, and leaves nothing behind", async () => {
  const parent = temporaryFolder();
  const folder = path.join(parent, "software-gpu");
  const brought = await bringSoftwareGpu({ folder, packageName: "semantic-search-no-such-package" });
  assert.deepEqual(Object.keys(brought), ["reason"]);
  assert.match(
    brought.reason,
    /^no software GPU: apt-get download semantic-search-no-such-package: \S.*apt-get update/,
  );
  assert.deepEqual(readdirSync(parent), []);
});

test("a folder that is there is complete, and needs no apt", async () => {
  const folder = path.join(temporaryFolder(), "software-gpu");
  mkdirSync(folder);
  assert.deepEqual(await bringSoftwareGpu({ folder, packageName: "semantic-search-no-such-package" }), { folder });
});

test("the environment names files that are there", () => {
  const folder = path.dirname(process.env.VULKAN_LOADER);
  const { LD_LIBRARY_PATH, ...files } = softwareGpuEnvironment(folder);
  assert.equal(LD_LIBRARY_PATH.split(path.delimiter)[0], folder);
  for (const name of ["VULKAN_LOADER", "VK_DRIVER_FILES", "VK_ICD_FILENAMES"]) {
    assert.ok(readdirSync(folder).includes(path.basename(files[name])), name);
  }
});
