#!/usr/bin/env node
/** The command `code-search`. */

import { run } from "./command.mjs";

process.stdout.on("error", (/** @type {NodeJS.ErrnoException} */ error) => {
  // The reader has closed the pipe, as `head` does: not an error.
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});
process.exitCode = await run(process.argv.slice(2));
