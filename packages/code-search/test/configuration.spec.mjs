/** Which setting counts, and that a folder's file starts no download. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { cpSync, mkdirSync, symlinkSync } from "node:fs";
import { createServer } from "node:http";
import * as os from "node:os";
import * as path from "node:path";
import { after, test } from "node:test";
import { settingsFor } from "../cli/configuration.mjs";
import { folderWith, OTHER_TINY_MODEL, run, TINY_MODEL, write } from "./folders.mjs";

const FILE = "code-search.json";
const OF_USER = `semantic-search-native/${FILE}`;

/** Where settings files of a user are looked for, on any system. */
const home = (folder) => ({ XDG_CONFIG_HOME: folder, APPDATA: folder });

test("an option counts most, then the environment, the folder's file, and the user's", async () => {
  const user = folderWith({ [OF_USER]: JSON.stringify({ model: "org/user", device: "gpu", limit: 4 }) });
  const folder = folderWith({ [FILE]: JSON.stringify({ model: "org/folder", device: "cpu", limit: 3 }) });
  const empty = folderWith();
  const env = { SEMANTIC_SEARCH_MODEL: "org/environment", SEMANTIC_SEARCH_DEVICE: "gpu", ...home(user) };
  const found = async (...given) => {
    const { model, device, limit } = await settingsFor(...given);
    return [model?.name, device, limit];
  };
  const options = { model: "org/option", device: "auto", limit: 1 };
  assert.deepEqual(await found(folder, options, env), ["org/option", "auto", 1]);
  assert.deepEqual(await found(folder, {}, env), ["org/environment", "gpu", 3]);
  assert.deepEqual(await found(folder, {}, home(user)), ["org/folder", "cpu", 3]);
  assert.deepEqual(await found(empty, {}, home(user)), ["org/user", "gpu", 4]);
  assert.deepEqual(await found(empty, {}, home(empty)), [undefined, "auto", 10]);
  assert.deepEqual(await found(folder, { limit: 2 }, home(empty)), ["org/folder", "cpu", 2]);
});

test("the nearest file up to the repository's root counts, and none above or outside of repositories", async () => {
  const outer = folderWith({
    [FILE]: '{ "limit": 1 }',
    [`repository/${FILE}`]: '{ "limit": 2 }',
    "repository/a/b/c.js": "",
    [`repository/d/${FILE}`]: '{ "limit": 3 }',
    "repository/d/e/f.js": "",
    "elsewhere/a.js": "",
  });
  mkdirSync(path.join(outer, "repository/.git"));
  const limit = async (folder) => (await settingsFor(path.join(outer, folder), {}, home(outer))).limit;
  assert.equal(await limit("repository/a/b"), 2);
  assert.equal(await limit("repository/d/e"), 3);
  assert.equal(await limit("elsewhere"), 10);
});

test("a path in a file is relative to it; only the user's file may name one outside of its folder", async () => {
  const outer = folderWith({
    "model/config.json": "{}",
    "repository/model/config.json": "{}",
    "repository/src/a.js": "",
    "user/semantic-search-native/m/config.json": "{}",
  });
  const repository = path.join(outer, "repository");
  mkdirSync(path.join(repository, ".git"));
  const modelOf = async (name) => {
    write(repository, FILE, JSON.stringify({ model: name }));
    const { model } = await settingsFor(path.join(repository, "src"), {}, home(outer));
    return [model.name, model.isDownloaded];
  };
  assert.deepEqual(await modelOf("./model"), [path.join(repository, "model"), undefined]);
  for (const name of ["../model", path.join(outer, "model"), "org/name"]) {
    assert.deepEqual(await modelOf(name), [name, true], name);
  }
  const ofUser = async (name) => {
    write(outer, `user/${OF_USER}`, JSON.stringify({ model: name }));
    return (await settingsFor(folderWith(), {}, home(path.join(outer, "user")))).model.name;
  };
  assert.equal(await ofUser("m"), path.join(outer, "user/semantic-search-native/m"));
  assert.equal(await ofUser("../../model"), path.join(outer, "model"));
  assert.equal(await ofUser("~/"), path.resolve(os.homedir()));
  assert.equal(await ofUser("org/name"), "org/name");
});

for (const [what, content, message] of [
  ["an unknown key", '{ "modle": "x" }', /: unknown key "modle" \(known: model, device, limit\)$/],
  ["a key of all objects", '{ "constructor": 1 }', /: unknown key "constructor"/],
  ["a model that is no text", '{ "model": 1 }', /: model: expected a folder or a name on the Hub, found 1$/],
  ["an unknown device", '{ "device": "tpu" }', /: device: expected one of auto, cpu, gpu, found "tpu"$/],
  ["a limit that is too large", '{ "limit": 1001 }', /: limit: expected a whole number from 1 to 1000, found 1001$/],
  ["a list", "[]", /: expected an object such as/],
  ["what is no JSON", "{ limit: 1 }", /JSON/],
]) {
  test(`${what} in a file is refused, with the file's name`, async () => {
    const folder = folderWith({ [FILE]: content });
    const user = folderWith({ [OF_USER]: content });
    for (const [dir, env, file] of [
      [folder, home(folderWith()), path.join(folder, FILE)],
      [folderWith(), home(user), path.join(user, OF_USER)],
    ]) {
      const error = await settingsFor(dir, {}, env).then(assert.fail, (reason) => reason);
      assert.equal(error.code, "INVALID_CONFIGURATION");
      assert.ok(error.message.startsWith(`${file}:`), error.message);
      assert.match(error.message, message);
    }
  });
}

test("a folder's file that is a link is refused, and nothing of what it names is shown; a user's is followed", {
  skip: process.platform === "win32" && "links need rights there",
}, async () => {
  const elsewhere = folderWith({ "secret.json": "TOP SECRET", "settings.json": '{ "limit": 7 }' });
  const folder = folderWith();
  symlinkSync(path.join(elsewhere, "secret.json"), path.join(folder, FILE));
  await assert.rejects(settingsFor(folder, {}, home(folderWith())), (/** @type {Error} */ { message }) => {
    assert.match(message, /code-search\.json: ELOOP/);
    assert.doesNotMatch(message, /TOP|SECRET/);
    return true;
  });
  const user = folderWith({ "semantic-search-native/x": "" });
  symlinkSync(path.join(elsewhere, "settings.json"), path.join(user, OF_USER));
  assert.equal((await settingsFor(folderWith(), {}, home(user))).limit, 7);
});

test("an unknown device in the environment is refused by the variable's name", async () => {
  const env = { SEMANTIC_SEARCH_DEVICE: "tpu", ...home(folderWith()) };
  await assert.rejects(settingsFor(folderWith(), {}, env), {
    message: 'the environment variable SEMANTIC_SEARCH_DEVICE: expected one of auto, cpu, gpu, found "tpu"',
  });
});

const requests = [];
const hub = createServer((request, response) => {
  requests.push(request.url);
  response.writeHead(404).end();
}).listen(0, "127.0.0.1");
after(() => hub.close());
await once(hub, "listening");

/** An environment with a cache and a Hub of its own. */
function withHub() {
  const { port } = hub.address();
  const cache = folderWith();
  return { HF_HUB_CACHE: cache, HF_HOME: cache, HF_ENDPOINT: `http://127.0.0.1:${port}`, HF_HUB_OFFLINE: "" };
}

test("a model that a folder's file names is not downloaded; the error says how to", async () => {
  const dir = folderWith({ [FILE]: '{ "model": "org/tiny" }', "a.js": "function a() {}\n" });
  const env = withHub();
  const { status, stdout, stderr } = await run(["search", "a", dir], { env });
  assert.deepEqual([status, stdout], [1, ""]);
  assert.ok(stderr.includes(path.join(dir, FILE)), stderr);
  assert.match(stderr, /^error \[MODEL_NOT_FOUND\]: .*npx semantic-search-native pull org\/tiny, or .*--model/);
  assert.deepEqual(requests, []);
  // The same name is looked up where the user gives it.
  const asked = await run(["search", "a", dir, "--model=org/tiny"], { env });
  assert.equal(asked.status, 1);
  assert.ok(requests.length > 0);
});

test("a model that a folder's file names is used if it is downloaded, and nobody is asked about it", async () => {
  requests.length = 0;
  const dir = folderWith({ [FILE]: '{ "model": "org/tiny" }', "a.js": "function a() {}\n" });
  const env = withHub();
  const commit = "1".repeat(40);
  const model = "models--org--tiny";
  cpSync(TINY_MODEL, path.join(env.HF_HUB_CACHE, model, "snapshots", commit), { recursive: true });
  write(env.HF_HUB_CACHE, `${model}/refs/main`, commit);
  const { status, stdout, stderr } = await run(["index", dir], { env });
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^2 files, 2 chunks: 2 files read/);
  assert.deepEqual(requests, []);
});

test("a model beside a folder's file is used; what is no name is refused", async () => {
  const dir = folderWith({
    [FILE]: '{ "model": "./model", "limit": 1 }',
    "a.js": "function a() {}\n",
    "b.js": "let b;\n",
  });
  cpSync(OTHER_TINY_MODEL, path.join(dir, "model"), { recursive: true });
  const { status, stdout, stderr } = await run(["search", "a b", dir, "--json"]);
  assert.equal(status, 0, stderr);
  assert.equal(JSON.parse(stdout).hits.length, 1);
  for (const name of ["../model", "/model", "x; rm -rf y"]) {
    write(dir, FILE, JSON.stringify({ model: name }));
    const refused = await run(["search", "a", dir]);
    assert.equal(refused.status, 1);
    assert.match(
      refused.stderr,
      /^error \[INVALID_CONFIGURATION\]: .*: model: expected a folder below its own, or a name/,
    );
  }
});
