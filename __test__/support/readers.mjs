/**
 * Model folders have two readers: the addon (`src/model_dir.rs`) and the JavaScript fallback (`lib/model_dir.ts`). This asks
 * both about generated folders and compares their answers. What an encoder's settings mean is read by
 * the addon alone.
 */

import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";
import { changedFolder, OPTIONS } from "./model_folders.mjs";

const require = createRequire(import.meta.url);
const { loadAddon } = require("../../dist/lib/native.js");
const { describe, readModelDir } = require("../../dist/lib/model_dir.js");
const { TextTokenizer } = require("../../dist/lib/fallback/tokenizer/text_tokenizer.js");

// Most of the time goes into writing files, so a file system in memory is used where there is one.
const SCRATCH = existsSync("/dev/shm") ? "/dev/shm" : os.tmpdir();
const FIXTURES = fileURLToPath(new URL("../../tests/fixtures", import.meta.url));
const NAMES = [
  ...["bert_mean", "bert_cls_bf16", "bert_cls_f16", "nomic_cls", "nomic_mean_dynamic", "nomic_partial", "bert_dense"],
  ...["static_embedding", "static_model2vec"],
];
/** Not changed at random. */
const RERANKERS = ["rerankers/qwen3", "rerankers/qwen3_classifier"];

const READERS = {
  addon: (folder, options) => loadAddon().describe(folder, options),
  fallback: (folder, options) => {
    const model = readModelDir(folder, options);
    return describe(model, new TextTokenizer(model).hash, { weightHashes: [], dtype: "f32" });
  },
};

/** The facts, or the error's code and the file that its message names first. */
function answer(reader, folder, options) {
  try {
    return { facts: READERS[reader](folder, options) };
  } catch (error) {
    const { code, message } = error;
    const at = message.indexOf(folder);
    const [file] = at < 0 ? [""] : /^[^\s:;,]*/.exec(message.slice(at + folder.length));
    return { code, file: path.posix.normalize(`/${file}`), message };
  }
}

function isSame(a, b) {
  return isDeepStrictEqual([a.facts, a.code, a.file], [b.facts, b.code, b.file]);
}

/**
 * Whether `config.json` is refused for what the encoder computes, which only the addon reads. The fallback takes that from
 * the graph, and a graph of the addon's is of the folder's `config.json`.
 */
function isEncoders({ code, message }) {
  return code === "MODEL_UNSUPPORTED" && message.includes("model_type");
}

/** Folders in which both readers are asked about the same files. */
export class Readers {
  #scratch = mkdtempSync(path.join(SCRATCH, "semantic-search-readers-"));
  #models = [];
  /** How many folders were accepted, and how many refused. */
  counts = { accepted: 0, refused: 0 };

  async prepare() {
    for (const name of [...NAMES, ...RERANKERS]) {
      const folder = path.join(this.#scratch, name);
      cpSync(path.join(FIXTURES, name), folder, { recursive: true });
      const names = readdirSync(folder, { recursive: true })
        .map(String)
        .filter((file) => /\.(json|jinja)$/.test(file) && statSync(path.join(folder, file)).size < 100_000);
      const files = names.map((file) => [
        file.split(path.sep).join("/"),
        readFileSync(path.join(folder, file), "utf8"),
      ]);
      this.#models.push({ name, folder, files: Object.fromEntries(files) });
    }
  }

  /**
   * Asks both readers about a fixture with some files changed.
   *
   * @param {string} fixture
   * @param {{ [file: string]: string | Buffer | null }} changed `null` removes the file
   * @param {object} [options]
   */
  ask(fixture, changed, options = {}) {
    const { folder, files } = this.#models.find(({ name }) => name === fixture);
    for (const [file, content] of Object.entries(changed)) {
      if (content === null) rmSync(path.join(folder, file), { force: true });
      else writeFileSync(path.join(folder, file), content);
    }
    const answers = { addon: answer("addon", folder, options), fallback: answer("fallback", folder, options) };
    for (const file of Object.keys(changed)) {
      if (files[file] === undefined) rmSync(path.join(folder, file), { force: true });
      else writeFileSync(path.join(folder, file), files[file]);
    }
    return answers;
  }

  /** A settings file of a fixture. */
  file(fixture, name) {
    return this.#models.find((model) => model.name === fixture).files[name];
  }

  /** @returns what the readers disagree about, or `undefined` */
  async run(random) {
    const { name, files } = random.of(this.#models.slice(0, NAMES.length));
    const changed = changedFolder(random, files);
    const options = random.of(OPTIONS);
    const { addon, fallback } = this.ask(name, changed, options);
    this.counts[addon.facts ? "accepted" : "refused"]++;
    if (isSame(addon, fallback) || isEncoders(addon)) return undefined;
    const shown = Object.entries(changed).map(([file, content]) => `${file} = ${content?.toString().slice(0, 1500)}`);
    return [`${name} with ${JSON.stringify(options)}`, ...shown, told("addon", addon), told("fallback", fallback)].join(
      "\n",
    );
  }

  async close() {
    rmSync(this.#scratch, { recursive: true, force: true });
  }
}

function told(reader, { facts, code, message }) {
  return `${reader}: ${facts ? JSON.stringify(facts) : `${code} ${message}`}`;
}
