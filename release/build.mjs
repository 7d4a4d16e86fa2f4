import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { ROOT, run, runPackage, rustEnvironment } from "../scripts/setup.mjs";
import { cacheFolder, readZip } from "../scripts/starter-model.mjs";
import { addresses } from "./addresses.mjs";
import { checkBinaries, checkSize } from "./inspect.mjs";
import { crateNotices } from "./notices.mjs";
import { libraryName, MANIFEST, PACKAGES, PLATFORMS, packageName } from "./platforms.mjs";

const ONNX_RUNTIME = MANIFEST.devDependencies["onnxruntime-node"];
/** Not `target/`, whose files were built with other flags. */
const TARGET = path.join(ROOT, "target", "release-build");
/** Metal as MLX uses it needs this version. */
const MACOS = "14.0";

/**
 * Leaves the package in `target/npm/<platform>`.
 *
 * @param {string} platform
 * @returns {Promise<string>} its folder
 */
export async function buildPlatform(platform) {
  const { target, library, megabytes } = PLATFORMS[platform] ?? {};
  if (!target) throw new Error(`expected a platform out of ${Object.keys(PLATFORMS).join(", ")}, found ${platform}`);
  const rust = rustEnvironment();
  if (!rust) throw new Error("the addon needs a Rust toolchain: see https://rustup.rs");
  const folder = path.join(PACKAGES, platform);
  rmSync(folder, { recursive: true, force: true });
  await runPackage("@napi-rs/cli/dist/cli.js", ["create-npm-dirs", "--npm-dir", path.relative(ROOT, PACKAGES)]);
  const manifestFile = path.join(folder, "package.json");
  const manifest = JSON.parse(readFileSync(manifestFile, "utf8"));

  const tools = await releaseTools();
  const environment = { ...rust, PATH: [tools.bin, rust.PATH].join(path.delimiter), PYTHONPATH: tools.folder };
  copyFileSync(await compile(platform, environment), path.join(folder, manifest.main));
  const libraryFile = path.join(folder, libraryName(platform));
  copyFileSync(path.join(ROOT, "node_modules/onnxruntime-node/bin/napi-v6", library), libraryFile);
  await renameForLinker(platform, libraryFile, environment);
  const metal = platform === "darwin-arm64" ? [metalLibrary()] : [];
  for (const file of metal) copyFileSync(file, path.join(folder, path.basename(file)));

  copyFileSync(path.join(ROOT, "LICENSE"), path.join(folder, "LICENSE"));
  const notices = [await crateNotices(target, rust), await onnxRuntimeNotices()];
  writeFileSync(path.join(folder, "THIRD_PARTY_NOTICES.txt"), notices.join("\n"));
  const binaries = [manifest.main, libraryName(platform), ...metal.map((file) => path.basename(file))];
  const published = {
    ...manifest,
    description: `${MANIFEST.name} for ${platform}: the addon, and ONNX Runtime ${ONNX_RUNTIME}`,
    ...addresses(),
    // Yarn must not leave shared libraries in an archive.
    preferUnplugged: true,
    files: [...binaries, "THIRD_PARTY_NOTICES.txt"],
  };
  writeFileSync(manifestFile, `${JSON.stringify(published, null, 2)}\n`);
  for (const name of readdirSync(folder)) chmodSync(path.join(folder, name), 0o644);

  await checkBinaries(platform, folder, [manifest.main, libraryName(platform)]);
  checkSize(packageName(platform), folder, megabytes);
  return folder;
}

/** Compiles the addon, for Linux against an old glibc, and returns its file. */
async function compile(platform, environment) {
  const { target, glibc } = PLATFORMS[platform];
  const home = process.env.CARGO_HOME ?? path.join(os.homedir(), ".cargo");
  const flags = [`--remap-path-prefix=${home}=cargo`, `--remap-path-prefix=${ROOT.replace(/[\\/]$/, "")}=.`];
  const env = {
    ...environment,
    CARGO_ENCODED_RUSTFLAGS: flags.join("\x1f"),
    MACOSX_DEPLOYMENT_TARGET: MACOS,
    // What a build with MLX on Linux has left in the environment must not find its way into the package.
    SEMANTIC_SEARCH_MLX_LIB: undefined,
  };
  const [command, triple] = glibc ? ["zigbuild", `${target}.${glibc}`] : ["build", target];
  await run("cargo", [command, "--release", "--locked", "--lib", "--target", triple, "--target-dir", TARGET], env);
  const { DLL_PREFIX, DLL_SUFFIX } = libraryAffixes(platform);
  return path.join(TARGET, target, "release", `${DLL_PREFIX}semantic_search_native${DLL_SUFFIX}`);
}

function libraryAffixes(platform) {
  if (platform.startsWith("win32")) return { DLL_PREFIX: "", DLL_SUFFIX: ".dll" };
  return { DLL_PREFIX: "lib", DLL_SUFFIX: platform.startsWith("darwin") ? ".dylib" : ".so" };
}

/** The newest `mlx.metallib` that mlx-sys has compiled. */
function metalLibrary() {
  const below = readdirSync(TARGET, { recursive: true }).map(String);
  const found = below.filter((name) => path.basename(name) === "mlx.metallib");
  if (found.length === 0) throw new Error(`${TARGET} contains no mlx.metallib: expected mlx-sys to compile one`);
  return path.join(TARGET, found.at(-1));
}

/** Gives the library the name that other builds of ONNX Runtime do not have. Windows goes by the file's name. */
async function renameForLinker(platform, file, environment) {
  const name = path.basename(file);
  if (platform.startsWith("linux")) await run("patchelf", ["--set-soname", name, file], environment);
  if (platform.startsWith("darwin")) {
    await run("install_name_tool", ["-id", `@rpath/${name}`, file]);
    await run("codesign", ["--force", "--sign", "-", file]);
  }
}

/** The tools of `requirements.txt`, in the cache folder. */
async function releaseTools() {
  const list = path.join(ROOT, "release/requirements.txt");
  const folder = path.join(cacheFolder(), "release", "tools");
  const stamp = path.join(folder, "installed-list");
  const tools = { folder, bin: path.join(folder, "bin") };
  if (process.platform !== "linux") return tools;
  if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== readFileSync(list, "utf8")) {
    rmSync(folder, { recursive: true, force: true });
    await run("python3", ["-m", "pip", "install", "--quiet", "--target", folder, "--requirement", list]);
    copyFileSync(list, stamp);
  }
  return tools;
}

/** What ONNX Runtime's own packages for Python carry, and those for Node.js do not. */
async function onnxRuntimeNotices() {
  const folder = path.join(cacheFolder(), "release", `onnxruntime-${ONNX_RUNTIME}`);
  const file = path.join(folder, "notices.txt");
  if (!existsSync(file)) {
    mkdirSync(folder, { recursive: true });
    const pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder];
    await run("python3", [...pip, `onnxruntime==${ONNX_RUNTIME}`]);
    const wheel = readdirSync(folder).find((name) => name.endsWith(".whl"));
    const names = ["onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt"];
    const entries = readZip(readFileSync(path.join(folder, wheel)), (name) => names.includes(name));
    rmSync(path.join(folder, wheel));
    writeFileSync(file, [`ONNX Runtime ${ONNX_RUNTIME}\n`, ...names.map((name) => entries.get(name))].join("\n"));
  }
  return readFileSync(file, "utf8");
}
