/** Brings peers into the cache folder, in the versions that are pinned here. They are no dependencies of the package. */

import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { cacheFolder as packageCacheFolder } from "../../scripts/starter-model.mjs";

const BENCHES = fileURLToPath(new URL("..", import.meta.url));
const REQUIREMENTS = fileURLToPath(new URL("requirements", import.meta.url));

/** Where peers and models lie. */
export function cacheFolder() {
  return path.join(packageCacheFolder(), "bench");
}

/** Runs a command; `undefined` where it went well, else the end of what it said. */
function failure(program, args, cwd) {
  const { status, error, stdout, stderr } = spawnSync(program, args, { cwd, encoding: "utf8" });
  if (status === 0) return undefined;
  return error?.message ?? `${stdout}\n${stderr}`.trim().split("\n").slice(-3).join(" ");
}

/**
 * @typedef {object} Installed
 * @property {string} [program] what runs the driver
 * @property {{ [name: string]: string }} [env] added to its environment
 * @property {string} [folder] where npm packages lie
 * @property {string} [missing] why it is not there and what would install it
 */

const done = new Map();

/** Installs once per run of the benchmark. `install` returns why it failed. */
function once(key, list, target, install) {
  if (done.has(key)) return done.get(key);
  const stamp = path.join(target, "installed-list");
  let reason;
  if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== readFileSync(list, "utf8")) {
    console.error(`installing ${key}`);
    rmSync(target, { recursive: true, force: true });
    mkdirSync(target, { recursive: true });
    reason = install();
    if (reason === undefined) copyFileSync(list, stamp);
  }
  done.set(key, reason);
  return reason;
}

/**
 * The npm packages of a list, in a folder of their own.
 *
 * @param {string} name
 * @param {string} list file below `requirements/`
 * @param {string[]} more arguments
 * @returns {Installed}
 */
function npmPackages(name, list, more) {
  const source = path.join(REQUIREMENTS, list);
  const folder = path.join(cacheFolder(), name);
  // No scripts: onnxruntime-node's would download CUDA parts, and none of the others is needed.
  const args = ["install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", ...more];
  const reason = once(name, source, folder, () => {
    copyFileSync(source, path.join(folder, "package.json"));
    return process.env.npm_execpath?.endsWith(".js")
      ? failure(process.execPath, [process.env.npm_execpath, ...args], folder)
      : failure("npm", args, folder);
  });
  return reason
    ? { missing: `npm ${args.join(" ")} (benches/contestants/requirements/${list}): ${reason}` }
    : { program: process.execPath, folder };
}

/** transformers.js and fastembed. */
export function npmPeers() {
  return npmPackages("npm", "package.json", []);
}

/** node-llama-cpp with the binaries of this platform for the CPU: those for GPUs take hundreds of megabytes. */
export function llamaPeer() {
  const list = "llama.json";
  const { dependencies } = JSON.parse(readFileSync(path.join(REQUIREMENTS, list), "utf8"));
  const system = { darwin: "mac", win32: "win" }[process.platform] ?? process.platform;
  const binaries = `${system}-${process.arch}${system === "mac" && process.arch === "arm64" ? "-metal" : ""}`;
  const more = ["--omit=optional", `@node-llama-cpp/${binaries}@${dependencies["node-llama-cpp"]}`];
  return npmPackages("llama", list, more);
}

/**
 * Compiles a crate into the cache.
 *
 * @param {string} crate its folder below `benches/`
 * @returns {Installed}
 */
function compiled(crate, executable) {
  const target = path.join(cacheFolder(), path.basename(crate));
  const program = path.join(target, "release", process.platform === "win32" ? `${executable}.exe` : executable);
  const line = `cargo build --release --manifest-path benches/${crate}/Cargo.toml`;
  const [cargo, ...args] = line.split(" ");
  const manifest = path.join(BENCHES, crate, "Cargo.toml");
  const reason = failure(cargo, [...args.slice(0, -1), manifest, "--target-dir", target]);
  return reason ? { missing: `${line}: ${reason}` } : { program };
}

/** @param {boolean} isWanted it takes minutes to compile, and it is slow */
export function candlePeer(isWanted) {
  return isWanted
    ? compiled("drivers/candle", "candle-peer")
    : { missing: "slow, so only with --full or --peers=candle" };
}

/** The program that times this package's stages. */
export function stageTimer() {
  return compiled("suites/stage_timer", "stage-timer");
}

/** OpenVINO and NNCF report to Google that they are used, but not from CI. */
const PYTHON_ENV = { CI: "true" };

/**
 * A Python environment of its own for `requirements/<name>.txt`.
 *
 * @param {boolean} isWanted whether it may be installed and measured
 * @returns {Installed}
 */
export function pythonPeer(name, isWanted = true) {
  const list = path.join(REQUIREMENTS, `${name}.txt`);
  const folder = path.join(cacheFolder(), "python", name);
  const line = `python3 -m venv ${name} && ${name}/bin/pip install -r benches/contestants/requirements/${name}.txt`;
  if (!isWanted) return { missing: `large, so only with --full or if named by --peers: ${line}` };
  const pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", list];
  const bin = process.platform === "win32" ? "Scripts" : "bin";
  const program = path.join(folder, bin, "python");
  const reason = once(
    `Python ${name}`,
    list,
    folder,
    () => failure("python3", ["-m", "venv", folder]) ?? failure(program, pip),
  );
  return reason ? { missing: `${line}: ${reason}` } : { program, env: PYTHON_ENV };
}
