/**
 * `npm run build:native`: builds the addon and regenerates `index.js` and `index.d.ts`.
 *
 * On Linux, `-- --mlx=cpu` or `-- --mlx=cuda` builds it with MLX, which `xtask` prepares first; `--blas=<file>` replaces the
 * slow BLAS of MLX's CPU build. `npm test` and `npm run demo` keep to the variant that was built last. Other arguments
 * go to `napi build`.
 */

import { spawn } from "node:child_process";
import * as path from "node:path";
import {
  CommandError,
  installPackages,
  prepareMlx,
  ROOT,
  recordVariant,
  reportFailure,
  rustEnvironment,
} from "./setup.mjs";
import { cacheFolder } from "./starter-model.mjs";

/** A program that failed and has said why on the terminal. */
class ExitError extends Error {
  constructor(status) {
    super(`exit code ${status}`);
    this.status = status ?? 1;
  }
}

/** Runs a program whose progress the user sees, and returns what it prints as its result. */
function runVisibly(program, args, env, stdout) {
  return new Promise((resolve, reject) => {
    const stdio = ["inherit", stdout, "inherit"];
    const child = spawn(program, args, { cwd: ROOT, env: { ...process.env, ...env }, stdio });
    let output = "";
    child.stdout?.setEncoding("utf8").on("data", (text) => {
      output += text;
    });
    child.on("error", reject);
    child.on("close", (status) => (status === 0 ? resolve(output) : reject(new ExitError(status))));
  });
}

/** Takes our own options out of the command line; what remains is napi's. */
function parseArguments(args) {
  const options = {};
  const napiArgs = args.filter((argument) => {
    const [, name, value] = /^--(mlx|blas)(?:=(.*))?$/.exec(argument) ?? [];
    if (name) options[name] = value ?? "";
    return !name;
  });
  return { ...options, napiArgs };
}

/** Why this cannot be built, or `undefined`. */
function refusal({ mlx, blas }) {
  if (mlx === undefined) return blas === undefined ? undefined : "--blas needs --mlx=cpu";
  if (process.platform === "darwin") {
    return "--mlx is for Linux: on Apple silicon every build has MLX (npm run build:native, without --mlx)";
  }
  if (process.platform !== "linux") return "--mlx is for Linux; on this platform the addon uses ONNX Runtime";
  if (mlx !== "cpu" && mlx !== "cuda") return `expected --mlx=cpu or --mlx=cuda, found --mlx=${mlx}`;
  if (blas !== undefined && mlx !== "cpu") return "--blas needs --mlx=cpu";
  return undefined;
}

function prepareVisibly(options, rust) {
  console.log(
    `preparing MLX (${options.mlx}): its wheel, mlx-c and bindings, kept in the cache folder; minutes the first time`,
  );
  const env = { ...rust, SEMANTIC_SEARCH_CACHE: cacheFolder() };
  return prepareMlx(options, (args) => runVisibly("cargo", args, env, "pipe"));
}

async function buildNative(args) {
  const { napiArgs, ...options } = parseArguments(args);
  const refused = refusal(options);
  if (refused) throw new CommandError("build:native", refused, null);
  const rust = rustEnvironment();
  if (!rust) throw new CommandError("build:native", "The addon needs a Rust toolchain: see https://rustup.rs", null);
  await installPackages();
  const variant = options.mlx ? await prepareVisibly(options, rust) : undefined;
  const napi = [
    path.join(ROOT, "node_modules/@napi-rs/cli/dist/cli.js"),
    "build",
    "--platform",
    "--release",
    ...napiArgs,
  ];
  if (variant) napi.push("--features", "mlx", "--", "--config", variant.config);
  await runVisibly(process.execPath, napi, rust, "inherit");
  recordVariant(variant);
}

buildNative(process.argv.slice(2)).catch((error) => {
  if (!(error instanceof ExitError)) reportFailure(error);
  process.exitCode = error.status ?? 1;
});
