/** Where figures come from: command, machine and code. */

import { spawnSync } from "node:child_process";
import * as os from "node:os";
import { ROOT } from "../../scripts/setup.mjs";
import { measured } from "../contestants/registry.mjs";

function git(...args) {
  return spawnSync("git", args, { cwd: ROOT, encoding: "utf8" }).stdout.trim();
}

/** The commit of the measured code; changes elsewhere do not count. */
export function commit() {
  const changed = git("status", "--porcelain", "--", "src", "lib", "cli", "embedder.ts", "Cargo.toml", "Cargo.lock");
  return git("rev-parse", "--short=12", "HEAD") + (changed === "" ? "" : ", with uncommitted changes");
}

export function describeRun(mode) {
  const [{ model }] = os.cpus();
  // Paths of this machine do not belong in the report.
  const args = process.argv.slice(2).filter((argument) => !/^--(out|package)=/.test(argument));
  return {
    command: ["npm run bench", ...(args.length > 0 ? ["--", ...args] : [])].join(" "),
    mode,
    date: new Date().toISOString().slice(0, 10),
    commit: measured.package === ROOT ? commit() : "not known: another folder",
    machine: `${os.cpus().length} × ${model.trim()}, ${Math.round(os.totalmem() / 2 ** 30)} GB, ${os.type()} ${os.machine()}`,
    node: process.version,
    threads: measured.threads,
    load: [os.loadavg()[0], os.loadavg()[0]],
    seconds: 0,
  };
}
