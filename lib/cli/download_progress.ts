import type { PullProgress } from "../../embedder.js";
import { clearStatus, showStatus } from "./terminal.js";

const BAR_WIDTH = 24;

/** Shows a download on standard error: a bar on a terminal, else a line per file. */
export function downloadProgress(): (progress: PullProgress) => void {
  let last = "";
  return ({ file, done, total }) => {
    if (process.stderr.isTTY) {
      if (done >= total) return clearStatus();
      const filled = Math.floor((BAR_WIDTH * done) / total);
      const bar = "█".repeat(filled) + "░".repeat(BAR_WIDTH - filled);
      return showStatus(() => `${bar} ${megabytes(done)} of ${megabytes(total)} MB  ${file}`);
    }
    if (file !== last) process.stderr.write(`downloading ${file}\n`);
    last = file;
  };
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}
