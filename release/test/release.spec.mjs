/** What a release promises about itself, wherever it is built. */

import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { test } from "node:test";
import { builtVariant, ROOT } from "../../scripts/setup.mjs";
import { addresses, withAbsoluteLinks } from "../addresses.mjs";
import { checkBinaries, checkSize } from "../inspect.mjs";
import { CHOSEN, MANIFEST, PLATFORMS, thisPlatform } from "../platforms.mjs";
import { checkWorkflows } from "../workflows.mjs";

const read = (file) => readFileSync(path.join(ROOT, file), "utf8");

test("all lists of platforms name the same ones", () => {
  const targets = CHOSEN.map((platform) => PLATFORMS[platform].target);
  assert.deepEqual([...MANIFEST.napi.targets].sort(), targets.sort());
  const built = [...read(".github/workflows/release.yml").matchAll(/\{ platform: ([\w-]+)/g)].map((match) => match[1]);
  assert.deepEqual(built.sort(), Object.keys(PLATFORMS).sort());
  const documented = read("docs/runtimes.md");
  for (const platform of Object.keys(PLATFORMS)) assert.ok(documented.includes(`\`${platform}\``), platform);
});

test("package and crate have the same version", () => {
  assert.equal(/^version = "(.*)"/m.exec(read("Cargo.toml"))[1], MANIFEST.version);
});

test("actionlint finds nothing wrong with the workflows", () => checkWorkflows());

test("an addon that was compiled for this machine is not packed", {
  skip: process.platform !== "linux" || !builtVariant(),
}, async () => {
  const addon = readdirSync(ROOT).find((name) => /^semantic-search-native\..*\.node$/.test(name));
  const refusal = await checkBinaries(thisPlatform(), ROOT, [addon]).then(
    () => "",
    (error) => error.message,
  );
  assert.match(refusal, /needs libmlx\.so/);
  assert.match(refusal, /looks for libraries in /);
});

test("README's links lead somewhere from npm's page, too", () => {
  const origin = addresses({ GITHUB_SERVER_URL: "https://example.org", GITHUB_REPOSITORY: "some/name" });
  const links = (text) => [...text.matchAll(/\]\(([^)]*)\)/g)].map((match) => match[1]);
  const base = `https://example.org/some/name/blob/v${MANIFEST.version}/`;
  const readme = read("README.md");
  const absolute = links(withAbsoluteLinks(readme, origin));
  assert.ok(absolute.some((link) => link.startsWith(base)));
  for (const [index, link] of links(readme).entries()) {
    const expected = /^(https?:|#)/.test(link) ? link : base + link;
    assert.equal(absolute[index], expected);
  }
});

test("a package over its budget is refused", () => {
  const folder = mkdtempSync(path.join(os.tmpdir(), "release-"));
  try {
    writeFileSync(path.join(folder, "library"), Buffer.alloc(2_000_000));
    checkSize("package", folder, 2);
    assert.throws(() => checkSize("package", folder, 1.9), /package: expected at most 1\.9 MB, found 2\.0 MB/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
