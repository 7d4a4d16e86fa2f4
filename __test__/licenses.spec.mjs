/** What the license check accepts and refuses. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { isAllowed, packageProblems, readPolicy } from "../scripts/licenses.mjs";
import { ROOT } from "./support/models.mjs";

test("licenses: an SPDX expression is satisfied by allowed licenses", () => {
  const allowed = ["MIT", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
  for (const expression of [
    "MIT",
    "MIT OR GPL-3.0",
    "GPL-3.0 OR MIT",
    "Apache-2.0/MIT",
    "Apache-2.0 / MIT",
    "(MIT OR Apache-2.0) AND Unicode-3.0",
    "Apache-2.0 WITH LLVM-exception",
  ]) {
    assert.ok(isAllowed(expression, allowed), expression);
  }
  for (const expression of [
    "",
    "GPL-3.0",
    "MIT AND GPL-3.0",
    "GPL-3.0 AND MIT OR LGPL-2.1",
    "(MIT OR Apache-2.0) AND NCSA",
    "Apache-2.0",
    "MIT MIT",
    "(MIT",
  ]) {
    assert.ok(!isAllowed(expression, allowed), expression);
  }
});

test("licenses: the policy is read as cargo-deny reads it", () => {
  const { allowed, exceptions } = readPolicy(readFileSync(path.join(ROOT, "deny.toml"), "utf8"));
  assert.ok(allowed.includes("MIT") && allowed.includes("Zlib") && !allowed.includes("argparse"));
  assert.ok(allowed.every((license) => !/GPL|NCSA/.test(license)));
  assert.deepEqual(exceptions.get("libfuzzer-sys"), ["NCSA"]);
});

test("licenses: npm packages come from npm, with a hash", () => {
  const good = { version: "1.0.0", license: "MIT", integrity: "sha512-x" };
  const flaws = (changes) => packageProblems({ "node_modules/x": { ...good, ...changes } }, { allowed: ["MIT"] });
  assert.deepEqual(flaws({}), []);
  assert.match(flaws({ integrity: undefined }).join(), /x 1\.0\.0 has no hash/);
  assert.match(flaws({ resolved: "git+ssh://git@example.org/x.git" }).join(), /x 1\.0\.0 comes from git/);
  assert.match(flaws({ license: "GPL-3.0" }).join(), /x 1\.0\.0 has the license GPL-3\.0/);
});
