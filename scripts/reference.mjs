/**
 * `npm run reference`: the pages of the API, from its TypeScript sources, into `docs/reference/site`. What is exported but
 * not documented, and a link that leads nowhere, are errors.
 */

import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { installPackages, ROOT, reportFailure, run } from "./setup.mjs";

const FOLDER = "docs/reference";

export async function buildReference() {
  // The sources need the types of Node.js.
  await installPackages();
  await installPackages(FOLDER);
  const [typedoc, settings] = ["node_modules/typedoc/bin/typedoc", "typedoc.json"].map((file) =>
    path.join(ROOT, FOLDER, file),
  );
  await run(process.execPath, [typedoc, "--options", settings]);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    await buildReference();
    console.log(`${FOLDER}/site/index.html`);
  } catch (error) {
    reportFailure(error);
    process.exitCode = 1;
  }
}
