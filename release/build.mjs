/** Builds the package of one platform: addon, libraries, licenses. */

import { chmodSync, copyFileSync, cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { prepareMlx, ROOT, run, runPackage, rustEnvironment } from "../scripts/setup.mjs";
import { cacheFolder } from "../scripts/starter-model.mjs";
import { addresses } from "./addresses.mjs";
import { compileAddon, setLinkerName, setSearchPath } from "./compile.mjs";
import { checkBinaries, checkSize } from "./inspect.mjs";
import { crateNotices, mlxNotices, onnxRuntimeNotices } from "./notices.mjs";
import { entryPoint, libraryName, MANIFEST, PACKAGES, PLATFORMS, packageName } from "./platforms.mjs";
import { releaseTools } from "./tools.mjs";

const ONNX_RUNTIME = MANIFEST.devDependencies["onnxruntime-node"];
const NOTICES = "THIRD_PARTY_NOTICES.txt";

/**
 * Leaves the package in `target/npm/<platform>`.
 *
 * @param {string} platform
 * @returns {Promise<string>} its folder
 */
export async function buildPlatform(platform) {
  if (!Object.hasOwn(PLATFORMS, platform)) {
    throw new Error(`expected a platform out of ${Object.keys(PLATFORMS).join(", ")}, found ${platform}`);
  }
  const { target, mlx, megabytes } = PLATFORMS[platform];
  const rust = rustEnvironment();
  if (!rust) throw new Error("the addon needs a Rust toolchain: see https://rustup.rs");
  const env = { ...rust, ...(await releaseTools(rust)) };
  const manifest = await platformManifest(platform);
  const folder = path.join(PACKAGES, platform);
  const addon = path.join(folder, manifest.main);
  writeFileSync(path.join(folder, "index.js"), entryPoint(platform, manifest.main));

  const withCache = { ...rust, SEMANTIC_SEARCH_CACHE: cacheFolder() };
  const variant = mlx && (await prepareMlx({ mlx }, (args) => run("cargo", args, withCache)));
  const { file, metal } = await compileAddon(platform, env, variant);
  copyFileSync(file, addon);
  if (metal) copyFileSync(metal, path.join(folder, path.basename(metal)));
  const libraries = mlx ? await addMlx(addon, variant, env) : await addOnnxRuntime(platform, folder, env);

  copyFileSync(path.join(ROOT, "LICENSE"), path.join(folder, "LICENSE"));
  const ofLibraries = mlx ? mlxNotices(variant) : await onnxRuntimeNotices(ONNX_RUNTIME);
  const notices = [await crateNotices(target, rust, mlx), ofLibraries];
  writeFileSync(path.join(folder, NOTICES), notices.join("\n"));
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) chmodSync(path.join(entry.parentPath, entry.name), 0o644);
  }
  await checkBinaries(platform, folder, [manifest.main, ...libraries]);
  checkSize(packageName(platform), folder, megabytes);
  // Last: a folder with it is packed.
  const published = {
    ...manifest,
    main: "index.js",
    ...(mlx && { dependencies: { [packageName("linux-x64-gnu")]: MANIFEST.version } }),
    description: `${MANIFEST.name} for ${platform}: the addon with ${mlx ? "MLX on CUDA 13" : `ONNX Runtime ${ONNX_RUNTIME}`}`,
    ...addresses(),
    // Yarn must not leave shared libraries in an archive.
    preferUnplugged: true,
    files: readdirSync(folder).filter((name) => name !== "package.json"),
  };
  writeFileSync(path.join(folder, "package.json"), `${JSON.stringify(published, null, 2)}\n`);
  return folder;
}

/** What napi-rs has for an empty folder, which is made. */
async function platformManifest(platform) {
  const folder = path.join(PACKAGES, platform);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  writeFileSync(path.join(folder, "README.md"), `# \`${packageName(platform)}\`\n`);
  // It writes those of all platforms at once.
  const all = path.join(PACKAGES, "manifests");
  await runPackage("@napi-rs/cli/dist/cli.js", ["create-npm-dirs", "--npm-dir", path.relative(ROOT, all)]);
  const read = (name) => JSON.parse(readFileSync(path.join(all, name, "package.json"), "utf8"));
  if (!PLATFORMS[platform].mlx) return read(platform);
  // It knows no variants: as that of the same platform, under another name.
  return { ...read("linux-x64-gnu"), name: packageName(platform), main: `${MANIFEST.name}.${platform}.node` };
}

/** @returns {Promise<string[]>} libraries, relative to the folder */
async function addOnnxRuntime(platform, folder, env) {
  const name = libraryName(platform);
  const file = path.join(folder, name);
  copyFileSync(path.join(ROOT, "node_modules/onnxruntime-node/bin/napi-v6", PLATFORMS[platform].library), file);
  await setLinkerName(platform, file, env);
  return [name];
}

/** MLX's library, those that its wheel has beside it, and the headers that it compiles kernels with. */
async function addMlx(addon, { library }, env) {
  const folder = path.dirname(addon);
  const lib = path.join(folder, "mlx/lib");
  mkdirSync(lib, { recursive: true });
  const wheel = path.resolve(library, "../..");
  const [beside] = readdirSync(wheel).filter((name) => name.endsWith(".libs"));
  const files = readdirSync(path.join(wheel, beside)).map((name) => path.join(wheel, beside, name));
  for (const file of [path.join(library, "libmlx.so"), ...files])
    copyFileSync(file, path.join(lib, path.basename(file)));
  cpSync(path.join(library, "../include/cccl"), path.join(folder, "mlx/include/cccl"), { recursive: true });
  await setSearchPath(addon, "$ORIGIN/mlx/lib", env);
  const libraries = readdirSync(lib);
  for (const name of libraries) await setSearchPath(path.join(lib, name), "$ORIGIN", env);
  return libraries.map((name) => path.join("mlx/lib", name));
}
