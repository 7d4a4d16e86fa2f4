/** A registry on this machine: verdaccio, which passes requests for other packages on to npm's own one. */

import { spawn } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import * as path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { installPackages, ROOT, runNpm } from "../scripts/setup.mjs";

const START_TIMEOUT_MS = 60_000;

/**
 * @param {object} settings
 * @param {string} settings.folder where it keeps its packages
 * @param {boolean} settings.isOffline whether it serves only what it has
 * @returns {Promise<{ env: { [name: string]: string }, stop: () => Promise<void> }>} `env`: npm's settings
 */
export async function startRegistry({ folder, isOffline }) {
  await installPackages("release");
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const upstream = (await runNpm(["config", "get", "registry"])).trim().split("\n").at(-1);
  mkdirSync(folder, { recursive: true });
  const everyone = { access: "$all", publish: "$all" };
  const settings = {
    storage: path.join(folder, "storage"),
    uplinks: isOffline ? {} : { npmjs: { url: upstream, maxage: "60m" } },
    packages: { "**": isOffline ? everyone : { ...everyone, proxy: "npmjs" } },
    max_body_size: "300mb",
    log: { type: "stdout", level: "error" },
  };
  // What is JSON is YAML as well.
  const config = path.join(folder, "config.yaml");
  writeFileSync(config, JSON.stringify(settings));
  const program = path.join(ROOT, "release/node_modules/verdaccio/bin/verdaccio");
  const child = spawn(process.execPath, [program, "--config", config, "--listen", url], { stdio: "pipe" });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (output += text));
  const ended = new Promise((resolve) => child.on("close", resolve));
  const stop = async () => {
    child.kill();
    await ended;
  };
  const start = performance.now();
  while (!(await answers(url))) {
    if (child.exitCode !== null || performance.now() - start > START_TIMEOUT_MS) {
      await stop();
      throw new Error(`the local registry did not start: ${output}`);
    }
    await delay(100);
  }
  // npm publishes only with a token; this registry asks for none.
  const env = { npm_config_registry: url, [`npm_config_//127.0.0.1:${port}/:_authToken`]: "none" };
  return { env, stop };
}

/** @param {string[]} archives */
export async function publishLocally(archives, { env }) {
  for (const archive of archives) await runNpm(["publish", archive, "--provenance=false"], env);
}

/** Installs packages into a new folder, without scripts, and with npm's cache empty: all of it comes from the registry. */
export function installInto(folder, dependencies, { env }) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(path.join(folder, "package.json"), JSON.stringify({ private: true, dependencies }));
  const args = ["install", "--ignore-scripts", "--no-audit", "--no-fund", `--prefix=${folder}`];
  return runNpm(args, { ...env, npm_config_cache: path.join(folder, "cache") });
}

async function answers(url) {
  try {
    return (await fetch(`${url}/-/ping`)).ok;
  } catch {
    return false;
  }
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
