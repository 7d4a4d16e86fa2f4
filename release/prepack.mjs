/** Compiles what is packed, and nothing that an earlier version has left. */

import { rmSync } from "node:fs";
import * as path from "node:path";
import { compileTypeScript, installPackages, ROOT } from "../scripts/setup.mjs";

await installPackages();
rmSync(path.join(ROOT, "dist"), { recursive: true, force: true });
await compileTypeScript();
