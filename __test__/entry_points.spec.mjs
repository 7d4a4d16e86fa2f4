/** The package as its users load it: installed in a folder of its own, in a child process, by `require` and `import`. */

import assert from "node:assert/strict";
import {
  chmodSync,
  copyFileSync,
  cpSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { libraryName, thisPlatform } from "../release/platforms.mjs";
import { builtAddon, installedPackage, PLATFORM_PACKAGE } from "./support/installed_package.mjs";
import { assertNothingFailed, model, ROOT, temporaryFolder } from "./support/models.mjs";
import { reportsOf, run } from "./support/processes.mjs";

const LOADERS = {
  require: (body) => ["-e", `const api = require("semantic-search-native"); (async () => { ${body} })();`],
  import: (body) => ["--input-type=module", "-e", `import * as api from "semantic-search-native"; ${body}`],
};

/** Runs `body` in a child process, with `api` and `report`; returns what it reported. */
function child(user, how, body, env = {}) {
  const preamble = `
    const report = (value) => console.log(JSON.stringify(value));
    const outcome = async (work) => { try { return await work(); } catch (error) {
      return { name: error.name, code: error.code, message: error.message, isOurs: error instanceof api.EmbedderError };
    } };`;
  const options = { cwd: user, env: { ...process.env, ORT_DYLIB_PATH: "", ...env }, timeoutMs: 60_000 };
  return reportsOf(LOADERS[how](preamble + body), options);
}

const LOAD = `
  const result = await outcome(async () => {
    const embedder = await api.Embedder.load(process.env.MODEL, JSON.parse(process.env.OPTIONS ?? "{}"));
    const { backend, isGpu, fallbackReason, dimension } = embedder;
    const [vector] = await embedder.embed(["the time"]);
    await embedder.close();
    return { backend, isGpu, fallbackReason, dimension, length: vector.length };
  });
  report(result);`;

for (const how of Object.keys(LOADERS)) {
  const load = async (user, options = {}, env = {}) =>
    (await child(user, how, LOAD, { MODEL: await model("bert_mean"), OPTIONS: JSON.stringify(options), ...env }))[0];

  test(`${how}: with the addon`, async () => {
    const loaded = await load(installedPackage());
    assertNothingFailed(loaded);
    assert.deepEqual([loaded.backend, loaded.length], [loaded.isGpu ? "mlx" : "onnx", loaded.dimension]);
  });

  test(`${how}: everything documented is exported`, async () => {
    const [names] = await child(
      installedPackage(),
      how,
      "report(Object.keys(api).filter((name) => !['default', 'module.exports', '__esModule'].includes(name)).sort());",
    );
    const classes = ["AbortError", "Embedder", "EmbedderError"];
    assert.deepEqual(names, [
      ...classes,
      "KNOWN_MODELS",
      "Reranker",
      "embed",
      "exportOnnx",
      "init",
      "isGpu",
      ...["packageCacheFolder", "pull"],
    ]);
  });

  test(`${how}: the integrations load without their libraries`, async () => {
    const load = `async (name) => Object.keys(await import("semantic-search-native/" + name))`;
    const names = ["ai-sdk", "chromadb", "lancedb", "langchain"];
    const [exported] = await child(
      installedPackage(),
      how,
      `report((await Promise.all(${JSON.stringify(names)}.map(${load}))).flat());`,
    );
    for (const name of ["embeddingModel", "embeddingFunction", "registerEmbedder", "embeddings"]) {
      assert.ok(exported.includes(name), name);
    }
  });

  test(`${how}: pull finds its HTTP client`, async () => {
    const options = `{ endpoint: "http://127.0.0.1:9", cacheFolder: "cache", token: false }`;
    const [{ code, message }] = await child(
      installedPackage({ addon: "hidden" }),
      how,
      `report(await outcome(() => api.pull("org/model", ${options})));`,
    );
    assert.equal(code, "DOWNLOAD_FAILED");
    assert.match(message, /the connection to http:\/\/127\.0\.0\.1:9 failed/);
  });

  for (const [addon, reason] of [
    ["hidden", /cannot be loaded: .*(Cannot find|not found)/i],
    [
      "broken",
      /cannot be loaded: .*(invalid ELF header|not a mach-o|file too short|not a valid Win32|slice is not valid)/i,
    ],
  ]) {
    test(`${how}: with the addon ${addon}, the JavaScript fallback takes over`, async () => {
      const user = installedPackage({ addon });
      const { backend, fallbackReason, dimension, length } = await load(user);
      assert.deepEqual([backend, length], ["onnx-js", dimension]);
      assert.match(fallbackReason, reason);
      const explicit = await load(user, { backend: "onnx" });
      assert.equal(explicit.code, "BACKEND_UNAVAILABLE");
      assert.equal(explicit.isOurs, true);
      assert.match(explicit.message, reason);
    });
  }

  test(`${how}: with the ONNX Runtime library missing`, async () => {
    const user = installedPackage();
    const env = { ORT_DYLIB_PATH: path.join(user, "nowhere.so") };
    const { backend, fallbackReason } = await load(user, {}, env);
    assert.equal(backend, "onnx-js");
    assert.match(fallbackReason, /nowhere\.so/);
    assert.equal((await load(user, { backend: "onnx" }, env)).code, "BACKEND_UNAVAILABLE");
    assert.equal(
      (await load(user, { onnxRuntimeLibrary: env.ORT_DYLIB_PATH, backend: "onnx" })).code,
      "BACKEND_UNAVAILABLE",
    );
  });

  test(`${how}: without any backend, the error gives all reasons`, async () => {
    const { code, message } = await load(
      installedPackage({ addon: "hidden", dependencies: ["@huggingface/tokenizers"] }),
    );
    assert.equal(code, "BACKEND_UNAVAILABLE");
    assert.match(message, /onnxruntime-node/);
    assert.match(message, /native addon cannot be loaded/);
  });

  test(`${how}: the synchronous functions of the process-wide model`, async () => {
    const body = `
      const options = { maxTokens: 32, dimensions: 20, layerNorm: true };
      const code = (work) => outcome(work).then((result) => result?.code ?? result);
      report([
        await code(() => api.isGpu()),
        await code(() => api.embed(["x"])),
        await code(() => api.init(process.env.OTHER + "/nowhere")),
        await code(() => api.init(process.env.MODEL, options)) ?? "ready",
        await code(() => api.init(process.env.MODEL, options)) ?? "ready",
        await code(() => api.init(process.env.OTHER)),
        await code(() => api.init(process.env.MODEL, { ...options, dimensions: 21 })),
        await code(() => api.init(process.env.MODEL, { backend: "onnx-js" })),
        await code(() => api.embed("x")),
        await code(() => api.embed(["x", 1])),
        api.embed([]).length,
        api.isGpu(),
      ]);
      const embedder = await api.Embedder.load(process.env.MODEL, options);
      const same = async (isQuery) => {
        const a = api.embed(["the time", "x"], isQuery), b = await embedder.embed(["the time", "x"], isQuery);
        return a.length === 2 && a.every((row, index) => row.length === 20 && row.every((value, column) => value === b[index][column]));
      };
      report([await same(false), await same(true)]);`;
    const [codes, same] = await child(installedPackage(), how, body, {
      MODEL: await model("nomic_cls"),
      OTHER: await model("bert_mean"),
    });
    assert.deepEqual(codes, [
      ...[
        "NOT_INITIALIZED",
        "NOT_INITIALIZED",
        "MODEL_NOT_FOUND",
        "ready",
        "ready",
        "ALREADY_INITIALIZED",
        "ALREADY_INITIALIZED",
      ],
      ...["INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_ARGUMENT", 0, false],
    ]);
    assert.deepEqual(same, [true, true]);
    const [hidden] = await child(
      installedPackage({ addon: "hidden" }),
      how,
      "report(await outcome(() => api.init('x')));",
    );
    assert.equal(hidden.code, "BACKEND_UNAVAILABLE");
  });
}

test("the package for CUDA is preferred, and a warning says why it cannot be loaded", {
  skip: process.platform !== "linux" || process.arch !== "x64" ? "there is one for Linux x64 only" : false,
}, async () => {
  const user = installedPackage();
  const cuda = path.join(user, "node_modules/semantic-search-native-linux-x64-cuda");
  const addon = path.join(cuda, "addon.node");
  mkdirSync(cuda);
  writeFileSync(path.join(cuda, "package.json"), JSON.stringify({ main: "addon.node" }));
  const body = `
    const warnings = [];
    process.on("warning", ({ message }) => warnings.push(message));
    const { backend } = await api.Embedder.load(process.env.MODEL, { backend: "onnx" });
    report({ backend, warnings, files: Object.keys(require.cache).filter((file) => file.endsWith(".node")) });`;
  const seen = async () => (await child(user, "require", body, { MODEL: await model("bert_mean") }))[0];

  writeFileSync(addon, "this is not a shared library");
  const broken = await seen();
  assert.equal(broken.backend, "onnx");
  assert.match(broken.warnings.join(), /^semantic-search-native-linux-x64-cuda cannot be loaded: .*(ELF|short)/);

  copyFileSync(builtAddon(user), addon);
  assert.deepEqual(await seen(), { backend: "onnx", warnings: [], files: [realpathSync(addon)] });
});

test("ONNX Runtime's library is loaded from the unpacked files of an Electron archive", async () => {
  const user = path.join(temporaryFolder(), "app.asar");
  cpSync(installedPackage({ dependencies: ["@huggingface/tokenizers"] }), user, {
    recursive: true,
    verbatimSymlinks: true,
  });
  // The linker would not see it in an archive.
  const unpacked = path.join(`${user}.unpacked`, "node_modules", PLATFORM_PACKAGE);
  mkdirSync(unpacked, { recursive: true });
  const library = libraryName(thisPlatform());
  renameSync(path.join(user, "node_modules", PLATFORM_PACKAGE, library), path.join(unpacked, library));
  const env = { MODEL: await model("bert_mean"), OPTIONS: JSON.stringify({ backend: "onnx" }) };
  const [{ backend }] = await child(user, "require", LOAD, env);
  assert.equal(backend, "onnx");
});

test("the command line works through the link that npm creates", {
  skip: process.platform === "win32" ? "npm writes a script instead there" : false,
}, async () => {
  const folder = await model("bert_mean");
  for (const addon of ["built", "hidden"]) {
    const user = installedPackage({ addon });
    const { bin, version } = JSON.parse(readFileSync(path.join(ROOT, "package.json"), "utf8"));
    const link = path.join(user, "node_modules/.bin/semantic-search-native");
    mkdirSync(path.dirname(link));
    symlinkSync(path.join("../semantic-search-native", bin["semantic-search-native"]), link);
    // As npm does, too.
    chmodSync(link, 0o755);
    const env = { ...process.env, ORT_DYLIB_PATH: "", SEMANTIC_SEARCH_MODEL: "" };
    const byLink = (...args) => run(link, args, { cwd: user, env, input: "the time" });
    assert.equal((await byLink("--version")).stdout, `${version}\n`);
    const { vector } = JSON.parse((await byLink("embed", folder)).stdout);
    assert.equal(vector.length, 48);

    for (const args of [[folder, "--measure=0"], []]) {
      const doctor = await byLink("doctor", "--json", ...args);
      const { findings } = JSON.parse(doctor.stdout);
      const problems = findings.filter(({ isProblem }) => isProblem);
      assert.equal(doctor.status, addon === "built" ? 0 : 1);
      assert.deepEqual(
        problems.map(({ what, fix }) => [
          /the addon does not work: .*cannot be loaded/.test(what),
          /build:native/.test(fix),
        ]),
        addon === "built" ? [] : [[true, true]],
      );
    }
  }
});

test("worker threads load, embed and end without affecting each other or the main thread", async () => {
  const body = `
    const { Worker } = require("node:worker_threads");
    const source = \`
      const { parentPort, workerData } = require("node:worker_threads");
      const { Embedder } = require("semantic-search-native");
      (async () => {
        const embedder = await Embedder.load(process.env.MODEL, { backend: workerData.backend });
        const [vector] = await embedder.embed(["the time"]);
        parentPort.postMessage(vector);
        if (workerData.abandon) embedder.embed(Array.from({ length: 2000 }, (_, index) => index + " word".repeat(60)));
        else await embedder.close();
      })();\`;
    const inWorker = (workerData) => new Promise((resolve, reject) => {
      const worker = new Worker(source, { eval: true, workerData });
      let vector;
      worker.on("message", (message) => { vector = message; if (workerData.abandon) worker.terminate(); });
      worker.on("error", reject);
      worker.on("exit", () => resolve(vector));
    });
    const embedder = await api.Embedder.load(process.env.MODEL);
    const [expected] = await embedder.embed(["the time"]);
    const vectors = await Promise.all(["onnx", "onnx-js"].flatMap((backend) => [
      inWorker({ backend }), inWorker({ backend, abandon: true }),
    ]));
    const difference = (vector) => Math.max(...vector.map((value, index) => Math.abs(value - expected[index])));
    report(vectors.map(difference));
    report((await embedder.embed(["the time"])).length);`;
  const [differences, length] = await child(installedPackage(), "require", body, { MODEL: await model("bert_mean") });
  assert.equal(differences.length, 4);
  for (const difference of differences) assert.ok(difference < 1e-5);
  assert.equal(length, 1);
});
