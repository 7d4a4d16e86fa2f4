/**
 * The documents are true: their samples run, their links lead somewhere, and no error code, error message or option is
 * missing or made up.
 *
 * Every fenced `js` sample is run as an ES module of its own, in a folder where `semantic-search-native` is installed and
 * every `./models/…` is the starter model; names are looked up on a Hub of this machine. HTML comments before it, which readers do not see, say what else it needs:
 *
 *     <!-- given: const texts = ["…"]; -->   code in front of it
 *     <!-- then: server.close(); -->          code behind it
 *     <!-- file: worker.mjs -->               it is this file, for the samples that follow on the page
 *     <!-- needs: fastembed -->               run where the benchmark or the tests of the integrations have installed
 *                                             these packages, else skipped
 *     <!-- not run: it needs Electron -->     not run, with the reason
 *     <!-- output -->                         before a `text` fence: what the sample above it prints
 */

import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { after, test } from "node:test";
import { cacheFolder } from "../scripts/starter-model.mjs";
import { filesIn, startHub } from "./support/hub_server.mjs";
import { api, ROOT, STARTER_MODEL, temporaryFolder } from "./support/models.mjs";
import { runNode } from "./support/processes.mjs";

const MANUAL = markdownIn("docs");
const PAGES = ["README.md", ...MANUAL];
const OTHER_FOLDERS = [
  ...[".github", "packages/code-search", "benches", "benches/results", "cli/trial_model", "fuzz", "tests/fixtures"],
];
const OTHER_PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", ...OTHER_FOLDERS.flatMap(markdownIn)];
const LINKING_PAGES = [...PAGES, ...OTHER_PAGES];
const DIRECTIVES = ["given", "then", "file", "needs", "not run", "output"];
const RERANKERS = path.join(ROOT, "tests/fixtures/rerankers");
const BENCH = path.join(cacheFolder(), "bench");

function markdownIn(folder) {
  const names = readdirSync(path.join(ROOT, folder));
  return names.filter((name) => name.endsWith(".md")).map((name) => `${folder}/${name}`);
}

function read(page) {
  return readFileSync(path.join(ROOT, page), "utf8");
}

/** The fences of a page with their directives, in order. */
function fences(page) {
  const pattern = /((?:^<!--(?:(?!-->).)*-->\n)*)^( *)```(\w*)\n(.*?)^ *```$/gms;
  return [...read(page).matchAll(pattern)].map(({ 1: comments, 3: language, 4: code, index, 0: all }) => {
    const directives = {};
    for (const [, name, value = ""] of comments.matchAll(/<!--\s*([a-z ]+?)(?::(.*?))?\s*-->/gs)) {
      assert.ok(DIRECTIVES.includes(name), `${page}: unknown directive "${name}" (known: ${DIRECTIVES.join(", ")})`);
      directives[name] = value.trim();
    }
    const line = read(page)
      .slice(0, index + all.indexOf("```"))
      .split("\n").length;
    return { language, code, directives, where: `${page}:${line}` };
  });
}

/** A folder like a user's, for the samples of one page. */
function userFolder() {
  const folder = temporaryFolder();
  mkdirSync(path.join(folder, "node_modules"));
  symlinkSync(ROOT, path.join(folder, "node_modules/semantic-search-native"), "junction");
  const model = path.join(folder, "starter-model");
  cpSync(STARTER_MODEL, model, { recursive: true });
  mkdirSync(path.join(folder, "models"));
  for (const name of ["CodeRankEmbed", "nomic-embed-text-v1.5", "all-MiniLM-L6-v2", "bge-small-en-v1.5"]) {
    symlinkSync(model, path.join(folder, "models", name), "junction");
  }
  cpSync(path.join(RERANKERS, "bert"), path.join(folder, "models/ms-marco-MiniLM-L6-v2"), { recursive: true });
  return folder;
}

/** Links installed packages into a user's folder; `false` where they are not installed. */
function linkPackages(folder, modules, names) {
  const installed = (name) => path.join(modules, name);
  if (!names.every((name) => existsSync(installed(name)))) return false;
  for (const name of names) {
    const target = path.join(folder, "node_modules", name);
    if (existsSync(target)) continue;
    mkdirSync(path.dirname(target), { recursive: true });
    symlinkSync(installed(name), target, "junction");
  }
  return true;
}

/**
 * Installs libraries with integrations, or the benchmark's peers and its model with an ONNX file; `false` where neither
 * has been brought.
 */
function installPeers(folder, names) {
  if (linkPackages(folder, path.join(ROOT, "__test__/integrations/node_modules"), names)) return true;
  const model = path.join(BENCH, "models/minilm-256");
  if (!existsSync(path.join(model, "onnx"))) return false;
  if (!linkPackages(folder, path.join(BENCH, "npm/node_modules"), names)) return false;
  cpSync(model, path.join(folder, "starter-model"), { recursive: true });
  return true;
}

const EMBEDDER = path.join(ROOT, "tests/fixtures/bert_mean");
const reranker = (architecture) => path.join(RERANKERS, architecture === "qwen3" ? "qwen3" : "xlm_roberta");
const UNKNOWN_MODEL = { id: "org/model", revision: "2".repeat(40), task: "embed" };

/** The models that samples name, as small ones, and a branch for `org/model`. */
const hub = await startHub(
  Object.fromEntries(
    [...api.KNOWN_MODELS, UNKNOWN_MODEL].map(({ id, revision, task, architecture }) => [
      id,
      {
        files: filesIn(task === "rerank" ? reranker(architecture) : EMBEDDER),
        commit: revision,
        branches: { main: revision, "v1.2": revision },
      },
    ]),
  ),
);
after(() => hub.close());

const FOREIGN_VARIABLES =
  /^(SEMANTIC_SEARCH_(MODEL|BACKEND)$|ORT_DYLIB_PATH$|HF_|HUGGING|TRANSFORMERS_OFFLINE$|(https?|all|no)_proxy$)/i;

function runModule(folder, file) {
  const env = { ...process.env };
  // What the user's shell may carry must not matter.
  for (const name of Object.keys(env)) if (FOREIGN_VARIABLES.test(name)) delete env[name];
  Object.assign(env, { NO_COLOR: "1", HF_ENDPOINT: hub.endpoint, HF_HOME: path.join(folder, "hub") });
  return runNode([file], { cwd: folder, env, timeoutMs: 60_000 });
}

for (const page of PAGES) {
  test(`${page}: its samples run`, async (t) => {
    const folder = userFolder();
    let printed;
    for (const [index, { language, code, directives, where }] of fences(page).entries()) {
      if ("output" in directives) {
        await t.test(`${where} is what the sample above prints`, () => assert.equal(printed, code));
        continue;
      }
      assert.ok(!["ts", "javascript", "typescript", "mjs"].includes(language), `${where}: write the sample as js`);
      if (language !== "js") continue;
      if (directives.file) {
        writeFileSync(path.join(folder, directives.file), code);
        continue;
      }
      const reason = directives["not run"];
      await t.test(where, { skip: reason }, async (sample) => {
        const peers = directives.needs?.split(",").map((name) => name.trim());
        if (peers && !installPeers(folder, peers)) return sample.skip(`not installed: ${peers}`);
        const file = path.join(folder, `sample-${index}.mjs`);
        writeFileSync(file, [directives.given, code, directives.then].filter(Boolean).join("\n"));
        const { status, signal, stdout, stderr } = await runModule(folder, file);
        assert.equal(status, 0, stderr || stdout || signal);
        printed = stdout;
      });
    }
  });
}

/** The anchors of a page, as GitHub makes them of its headings. */
function anchors(page) {
  const seen = new Map();
  const headings = withoutFences(read(page)).matchAll(/^#{1,6} (.+)$/gm);
  return [...headings].map(([, heading]) => {
    const text = heading.replace(/\[([^\]]*)\]\([^)]*\)/g, "$1").toLowerCase();
    const slug = text
      .replace(/[^\p{L}\p{N}\s_-]/gu, "")
      .trim()
      .replaceAll(" ", "-");
    const count = seen.get(slug) ?? 0;
    seen.set(slug, count + 1);
    return count === 0 ? slug : `${slug}-${count}`;
  });
}

function withoutFences(text) {
  return text.replace(/^ *```.*?^ *```$/gms, "");
}

for (const page of LINKING_PAGES) {
  test(`${page}: every relative link and anchor exists`, () => {
    const broken = [];
    for (const [, target] of withoutFences(read(page)).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      const [file, anchor] = target.split("#");
      const linked = file === "" ? page : path.posix.join(path.posix.dirname(page), file);
      if (!existsSync(path.join(ROOT, linked))) broken.push(target);
      else if (anchor !== undefined && !anchors(linked).includes(anchor)) broken.push(target);
    }
    assert.deepEqual(broken, []);
  });
}

test("docs/README.md names every page of the manual once", () => {
  const linked = [...read("docs/README.md").matchAll(/\]\(([\w-]+\.md)\)/g)].map(([, page]) => `docs/${page}`);
  assert.deepEqual(linked.toSorted(), MANUAL.filter((page) => page !== "docs/README.md").toSorted());
});

/** The tables of a text, each a list of rows of cells; the header first. */
function tablesIn(text) {
  return [...text.matchAll(/(?:^\|.*\n)+/gm)].map(([table]) => {
    const rows = table.trim().split("\n");
    return rows
      .filter((_, index) => index !== 1)
      .map((row) =>
        row
          .slice(1, -1)
          .split("|")
          .map((cell) => cell.trim()),
      );
  });
}

test("README.md: its figures are those of the benchmark's results", () => {
  const [[[, ...names], ...rows]] = tablesIn(section("README.md", "## How fast"));
  const results = section("benches/results/RESULTS.md", "## What one could use instead");
  const ofModel = results.split(/^### /m).find((part) => part.startsWith("all-MiniLM-L6-v2"));
  const figure = (peer, name) => {
    for (const [header, ...peers] of tablesIn(ofModel)) {
      const column = header.findIndex((title) => `query ${title}`.replace(/[¹²³⁴]/g, "").endsWith(name));
      const row = peers.find(([first]) => first === peer);
      if (column >= 0 && row) return row[column];
    }
    assert.fail(`${peer} has no ${name}`);
  };
  assert.ok(rows.length >= 5 && names.length >= 3);
  for (const [peer, ...figures] of rows) {
    const expected = names.map((name) => figure(peer, name));
    assert.deepEqual(figures, expected, peer);
  }
});

test("the manual's figures are those of the benchmark's results", () => {
  const results = read("benches/results/RESULTS.md");
  const speedups = [...results.matchAll(/^\| int8 throughput against our float32 \|.*?\| ([\d.]+)×/gm)]
    .map(([, times]) => Number(times).toFixed(1))
    .sort();
  const tuning = read("docs/tuning.md");
  assert.match(tuning, new RegExp(`${speedups[0]} \\(all-MiniLM-L6-v2\\) to\\s+${speedups[1]} times`));

  const [[, ...rows]] = tablesIn(read("benches/results/QUALITY.md"));
  const row = (name) => rows.find(([first]) => first.startsWith(name));
  const [, , loss, , leastCosine] = row("int8");
  assert.ok(leastCosine >= 0.99 && Math.abs(Number.parseFloat(loss)) < 0.5, "tuning: int8");
  const [, , bf16Loss, , leastBf16Cosine] = row("bfloat16");
  assert.ok(leastBf16Cosine >= 0.9995 && Math.abs(Number.parseFloat(bf16Loss)) < 0.5, "tuning: bfloat16");
  assert.match(tuning, /is at least 0\.9995\s+in bfloat16 and 0\.99\s+in int8, and MRR@10 differs by less than 0\.5 %/);
  const wrongPooling = Math.abs(Number.parseFloat(row("pooling done wrong")[2])).toFixed(1);
  assert.ok(read("docs/troubleshooting.md").includes(`lowered MRR by ${wrongPooling} %`));
});

/** The part of a page below a heading, up to the next one of its level. */
function section(page, heading) {
  const [, rest] = read(page).split(`\n${heading}\n`);
  assert.ok(rest !== undefined, `${page} has no heading "${heading}"`);
  return rest.split(new RegExp(`^${heading.match(/^#+/)[0]} `, "m"))[0];
}

const TROUBLESHOOTING = "docs/troubleshooting.md";
const ERROR_CODES = [
  ...read("lib/errors.ts")
    .split("] as const")[0]
    .matchAll(/^ {2}"([A-Z_]+)",$/gm),
].map(([, code]) => code);

test("troubleshooting has a heading for each error code, and no others", () => {
  const headings = [...read(TROUBLESHOOTING).matchAll(/^## `(.+)`$/gm)].map(([, code]) => code);
  assert.ok(ERROR_CODES.length > 0);
  assert.deepEqual(headings.toSorted(), ERROR_CODES.toSorted());
});

/** The sources as one text, in which a string that is broken into several is whole. */
function messageSources() {
  const below = (folder) =>
    readdirSync(path.join(ROOT, folder), { recursive: true }).map((name) => path.join(folder, String(name)));
  return [
    ...["embedder.ts", "reranker.ts"],
    ...["cli", "integrations", "lib", "src"].filter((folder) => existsSync(path.join(ROOT, folder))).flatMap(below),
  ]
    .filter((file) => /\.(ts|js|rs)$/.test(file))
    .map(read)
    .join("\n")
    .replace(/(["'`])\s*\+\s*["'`]/g, "")
    .replace(/\\\n\s*/g, "")
    .replaceAll('\\"', '"')
    .replaceAll("\\`", "`");
}

/** What is filled in, and what the error types put around a reason: what lies between is one string of the sources. */
const FRAMES =
  /…|: expected |, found |: not found; (?:expected )?| is not supported; |the \S+ backend is not available: |(?:inference|tokenization) failed: /;

test("every message in troubleshooting exists in the sources", () => {
  const sources = messageSources();
  const unknown = [];
  let count = 0;
  for (const code of ERROR_CODES) {
    for (const [, message] of section(TROUBLESHOOTING, `## \`${code}\``).matchAll(/^\| `(.+?)` \|/gm)) {
      count++;
      const parts = message.split(FRAMES).map((part) => part.replace(/^\W+|\W+$/g, ""));
      if (!parts.filter((part) => part.length > 3).every((part) => sources.includes(part))) unknown.push(message);
    }
  }
  assert.ok(count > 20, `only ${count} messages were found`);
  assert.deepEqual(unknown, []);
});

/** The options that a function knows: its error for a misspelt one lists them. */
async function knownOptions(call) {
  const message = await call({ "?": 1 }).then(assert.fail, (error) => error.message);
  return message.match(/\(known: (.+)\)/)[1].split(", ");
}

const OPTIONS = "docs/options.md";

/** The names in the first column of the table below a heading. */
function namesInTable(page, heading) {
  const cells = section(page, heading).matchAll(/^\| (`.+?) \|/gm);
  return [...cells].flatMap(([, cell]) => [...cell.matchAll(/`(\w+)/g)].map(([, name]) => name));
}

test("docs/options.md has a table with every option of each function, and no other", async () => {
  const embedder = await api.Embedder.load(STARTER_MODEL);
  const reranker = await api.Reranker.load(path.join(RERANKERS, "bert"));
  const functions = {
    "## Loading a model": (options) => api.Embedder.load(STARTER_MODEL, options),
    "## Embedding": (options) => embedder.embed([], options),
    "## Rerankers": (options) => reranker.rank("a query", [], options),
    "## Downloading": (options) => api.pull("org/name", options),
  };
  for (const [heading, call] of Object.entries(functions)) {
    const options = await knownOptions(call);
    assert.ok(options.includes("onProgress"));
    assert.deepEqual(namesInTable(OPTIONS, heading).toSorted(), options.toSorted(), heading);
  }
  await Promise.all([embedder.close(), reranker.close()]);
});

test("docs/options.md has every environment variable of this package, ONNX Runtime and the Hub that the sources read", () => {
  const names = /^(SEMANTIC_SEARCH|ORT|HF|TRANSFORMERS)_/;
  const sources = messageSources();
  const variables = [...sources.matchAll(/\benv\.([A-Z_]+)|\bvar(?:_os)?\("([A-Z_]+)"\)/g)]
    .map(([, javascript, rust]) => javascript ?? rust)
    .filter((name) => names.test(name) && !name.startsWith("SEMANTIC_SEARCH_TEST_"));
  const documented = namesInTable(OPTIONS, "## Environment variables").filter((name) => names.test(name));
  assert.ok(variables.includes("SEMANTIC_SEARCH_MODEL") && variables.includes("ORT_DYLIB_PATH"));
  assert.deepEqual([...new Set(documented)].toSorted(), [...new Set(variables)].toSorted());
});

test("docs/models.md lists the models of KNOWN_MODELS", () => {
  const inline = (prompt) => `\`${prompt.replaceAll("\n", "\\n").replaceAll("|", "\\|")}\``;
  const cells = (model) => {
    const { id, task, maxTokens = "", license = "" } = model;
    if (task === "rerank") return [`\`${id}\``, maxTokens, license];
    const prompts = [model.queryPrompt, model.documentPrompt].map((prompt) => (prompt === "" ? "" : inline(prompt)));
    return [`\`${id}\``, model.dimension, maxTokens, model.pooling, ...prompts, license];
  };
  const rows = api.KNOWN_MODELS.map((model) => `| ${cells(model).join(" | ")} |`);
  const tables = read("docs/models.md").matchAll(/<!-- known models -->\n(.*?)<!-- end of known models -->/gs);
  const found = [...tables].flatMap(([, table]) => table.trim().split("\n").slice(2));
  assert.deepEqual(found, rows);
});
