import type { PullProgress } from "../embedder.js";
import { clearStatus, megabytes, note, progressBar, showStatus } from "./terminal.js";

/** Shows the progress of a download or verification on standard error: a bar on a terminal, else a line per file. */
export function downloadProgress(): (progress: PullProgress) => void {
  let last = "";
  return ({ file, isVerification, done, total }) => {
    const line = `${isVerification ? "verifying" : "downloading"} ${file}`;
    if (process.stderr.isTTY) {
      if (done >= total) return clearStatus();
      return showStatus(() => `${progressBar(done / total)} ${megabytes(done)} of ${megabytes(total)}  ${file}`);
    }
    if (line !== last) note(line);
    last = line;
  };
}
