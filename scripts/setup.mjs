/**
 * What `npm run demo` and `npm test` need and a fresh clone does not have: packages, compiled TypeScript, the addon,
 * the starter model. Each step does nothing when its result is there. Node built-ins only.
 */

import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { bringStarterModel, starterModelFolder } from "./starter-model.mjs";

export const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** A command that failed; its output says why. */
export class CommandError extends Error {
  constructor(command, output, status) {
    super(`${command} failed${status === null ? "" : ` with exit code ${status}`}`);
    this.output = output;
  }
}

/**
 * Runs a program in the repository and returns its output, standard error included.
 *
 * @param {string} program
 * @param {string[]} args
 * @param {{ [name: string]: string | undefined }} [env] added to the environment
 */
export function run(program, args, env = {}) {
  return new Promise((resolve, reject) => {
    const command = [path.basename(program), ...args].join(" ");
    const child = spawn(program, args, {
      cwd: ROOT,
      env: { ...process.env, ...env },
      // Windows' npm and its like are scripts, which only a shell runs.
      shell: process.platform === "win32" && !program.endsWith(".exe"),
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text) => (output += text));
    child.on("error", (error) => reject(new CommandError(command, error.message, null)));
    child.on("close", (status) => (status === 0 ? resolve(output) : reject(new CommandError(command, output, status))));
  });
}

/** Runs the script of an installed package. */
export function runPackage(script, args, env) {
  return run(process.execPath, [path.join(ROOT, "node_modules", script), ...args], env);
}

/** Runs the npm that this was started by, or the one in the path. */
export function runNpm(args, env) {
  const npm = process.env.npm_execpath;
  return npm?.endsWith(".js") ? run(process.execPath, [npm, ...args], env) : run("npm", args, env);
}

/**
 * `npm ci`, unless `node_modules` holds what the lock file says.
 *
 * @param {string} [folder] of the package, relative to the repository
 */
export async function installPackages(folder = ".") {
  if (packagesAreCurrent(folder)) return;
  console.log(folder === "." ? "installing npm packages" : `installing npm packages of ${folder}`);
  await runNpm(["ci", `--prefix=${folder}`], { ONNXRUNTIME_NODE_INSTALL: "skip" });
}

function packagesAreCurrent(folder) {
  const installedFile = path.join(folder, "node_modules/.package-lock.json");
  const readPackages = (file) => JSON.parse(readFileSync(path.join(ROOT, file), "utf8")).packages;
  if (!existsSync(path.join(ROOT, installedFile))) return false;
  const installed = readPackages(installedFile);
  return Object.entries(readPackages(path.join(folder, "package-lock.json"))).every(([name, { version, optional }]) => {
    if (name === "") return true;
    // Packages for other platforms are optional and absent.
    return installed[name] ? installed[name].version === version : optional;
  });
}

/** Compiles to `dist/`. Takes a second, so it is always done. */
export async function compileTypeScript() {
  await runPackage("typescript/bin/tsc", []);
}

/**
 * The environment in which `cargo` is found, or `undefined` without a Rust toolchain. rustup's folder counts even where
 * the shell has not been told of it yet.
 */
export function rustEnvironment() {
  const withRustup = [process.env.PATH, path.join(os.homedir(), ".cargo", "bin")].join(path.delimiter);
  for (const PATH of [process.env.PATH, withRustup]) {
    if (spawnSync("cargo", ["--version"], { env: { ...process.env, PATH } }).status === 0) return { PATH };
  }
  return undefined;
}

/** What the addon was built with besides its sources: lies beside it and is absent for the ordinary build. */
const VARIANT_FILE = path.join(ROOT, ".build-variant.json");

/**
 * @typedef {object} MlxVariant
 * @property {"cpu" | "cuda"} mlx
 * @property {string} [blas] library in place of the BLAS in MLX's wheel
 * @property {string} config cargo configuration to build with
 * @property {string} library folder of libmlx.so
 */

/** @returns {MlxVariant | undefined} `undefined`: no MLX, except on Apple silicon, where every build has it */
export function builtVariant() {
  return existsSync(VARIANT_FILE) ? JSON.parse(readFileSync(VARIANT_FILE, "utf8")) : undefined;
}

/**
 * Lets `xtask` bring MLX for Linux.
 *
 * @param {Pick<MlxVariant, "mlx" | "blas">} wanted
 * @param {(args: string[]) => Promise<string>} runCargo returns what is printed
 * @returns {Promise<MlxVariant>}
 */
export async function prepareMlx({ mlx, blas }, runCargo) {
  const args = ["run", "--quiet", "--locked", "--manifest-path", "xtask/Cargo.toml", "--", "mlx", `--variant=${mlx}`];
  const file = blas && path.resolve(blas);
  if (file) args.push(`--blas=${file}`);
  const printed = await runCargo(args);
  const found = Array.from(printed.matchAll(/^(config|library)=(.*)$/gm), (match) => match.slice(1));
  return { mlx, blas: file, ...Object.fromEntries(found) };
}

/** @param {MlxVariant | undefined} variant */
export function recordVariant(variant) {
  if (variant) writeFileSync(VARIANT_FILE, `${JSON.stringify(variant, null, 2)}\n`);
  else rmSync(VARIANT_FILE, { force: true });
}

/** Builds the addon in the variant that was built last, and regenerates `index.js` and `index.d.ts`. */
export async function buildAddon(rust) {
  const { mlx, blas } = builtVariant() ?? {};
  const args = [mlx && `--mlx=${mlx}`, blas && `--blas=${blas}`].filter(Boolean);
  await run(process.execPath, [path.join(ROOT, "scripts/build-native.mjs"), ...args], rust);
}

/** Whether a source is newer than the built addon, or there is none, or the libmlx.so that it needs is gone. */
export function addonIsStale() {
  const built = readdirSync(ROOT).filter((name) => /^semantic-search-native\..*\.node$/.test(name));
  if (built.length === 0) return true;
  const variant = builtVariant();
  if (variant && !existsSync(variant.library)) return true;
  const modified = (file) => statSync(path.join(ROOT, file)).mtimeMs;
  const below = (folder) =>
    readdirSync(path.join(ROOT, folder), { recursive: true }).map((name) => path.join(folder, String(name)));
  const sources = ["Cargo.toml", "Cargo.lock", "build.rs", ...below("src")];
  if (variant) sources.push(...below("xtask/src"), ...below("xtask/shim"));
  return Math.max(...sources.map(modified)) > Math.max(...built.map(modified));
}

/** Completes the starter model and returns its folder. */
export function installStarterModel() {
  return bringStarterModel({ folder: starterModelFolder() });
}

/** Prints why a step failed, with the output of its command. */
export function reportFailure(error) {
  if (error instanceof CommandError) console.error(error.output.trimEnd());
  console.error(error instanceof CommandError ? error.message : (error.stack ?? String(error)));
}
