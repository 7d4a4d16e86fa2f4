/** What a Hub refuses, and who gets to see the token. No test reaches the real Hub. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { hubWith, ID } from "./support/hub.mjs";
import { refuse } from "./support/hub_server.mjs";
import { api, embedderError } from "./support/models.mjs";

const { pull } = api;

const cases = [
  [
    "an unknown model",
    (response) => refuse(response, 401, "RepoNotFound"),
    "MODEL_NOT_FOUND",
    ["no model org/model", "private", "HF_TOKEN", "./org/model"],
  ],
  [
    "an unknown model, to a token",
    (response) => refuse(response, 404, "RepoNotFound"),
    "MODEL_NOT_FOUND",
    ["the token that was sent"],
    "hf_x",
  ],
  [
    "an unknown revision",
    (response) => refuse(response, 404, "RevisionNotFound"),
    "MODEL_NOT_FOUND",
    ['no branch, tag or commit "main"'],
  ],
  [
    "a wrong token",
    (response) => refuse(response, 401, "", "Invalid credentials in Authorization header"),
    "ACCESS_DENIED",
    ["401", "Invalid credentials", "the token that was sent"],
    "hf_x",
  ],
  ["for lack of rights", (response) => refuse(response, 403), "ACCESS_DENIED", ["403", "HF_TOKEN"]],
  [
    "a gated model",
    (response) => refuse(response, 403, "GatedRepo", "Access to model org/model is restricted"),
    "ACCESS_DENIED",
    ["gated", "accept its conditions", "/org/model", "HF_TOKEN"],
  ],
  ["with an unexpected status", (response) => refuse(response, 418), "DOWNLOAD_FAILED", ["418"]],
];
for (const [what, reply, code, parts, token = false] of cases) {
  test(`the server refuses ${what}: ${code}`, async () => {
    const { hub, options } = await hubWith();
    hub.fault("hub", /api/, reply);
    await assert.rejects(pull(ID, { ...options, token }), embedderError(code, ...parts));
    assert.equal(hub.requests.length, 1, "asked once");
  });
}

test("a listed file that is gone is MODEL_NOT_FOUND", async () => {
  const { hub, options } = await hubWith();
  hub.fault("hub", /resolve.*safetensors/, (response) => refuse(response, 404, "EntryNotFound"));
  await assert.rejects(
    pull(ID, options),
    embedderError("MODEL_NOT_FOUND", "has no model.safetensors of org/model@main"),
  );
});

test("a gated file of a model that can be listed is ACCESS_DENIED", async () => {
  const { hub, options } = await hubWith();
  hub.fault("hub", /resolve/, (response) =>
    refuse(response, 401, "GatedRepo", "Access to model org/model is restricted"),
  );
  await assert.rejects(pull(ID, options), embedderError("ACCESS_DENIED", "gated model", "no token was sent"));
});

test("a model or revision that does not exist is MODEL_NOT_FOUND", async () => {
  const { options } = await hubWith();
  await assert.rejects(pull("org/other", options), embedderError("MODEL_NOT_FOUND", "no model org/other"));
  await assert.rejects(pull(`${ID}@v9`, options), embedderError("MODEL_NOT_FOUND", '"v9"'));
  await assert.rejects(pull(`${ID}@${"3".repeat(40)}`, options), embedderError("MODEL_NOT_FOUND", "3".repeat(40)));
});

test("the token goes to the endpoint and to no host that it redirects to", async () => {
  const { hub, options } = await hubWith();
  await pull(ID, { ...options, token: "hf_secret" });
  for (const { host, authorization } of hub.requests) {
    assert.equal(authorization, host === "hub" ? "Bearer hf_secret" : undefined);
  }
  assert.ok(hub.requests.some(({ host }) => host === "cdn"));
});

test("the token is kept on redirects within the endpoint, as for a renamed model", async () => {
  const { hub, options } = await hubWith();
  hub.fault("hub", /api\/models\/org\/old/, (response) => {
    response.writeHead(307, { location: `/api/models/${ID}/revision/main?blobs=true` });
    response.end();
  });
  hub.models["org/old"] = hub.models[ID];
  await pull("org/old", { ...options, token: "hf_secret" });
  const [first, second] = hub.requests;
  assert.deepEqual([first.authorization, second.authorization], ["Bearer hf_secret", "Bearer hf_secret"]);
});

test("endless redirects are an error", async () => {
  const { hub, options } = await hubWith();
  const loop = (response) => {
    response.writeHead(302, { location: "/api/again" });
    response.end();
  };
  hub.fault("hub", /api/, loop, 99);
  await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "redirects endlessly"));
});

test("the token never shows in an error", async () => {
  const { options } = await hubWith();
  await assert.rejects(pull(ID, { ...options, token: "hf secret" }), (error) => {
    assert.ok(!error.message.includes("secret"));
    return embedderError("INVALID_ARGUMENT", "token")(error);
  });
});
