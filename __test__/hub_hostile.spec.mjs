/** A Hub, mirror or proxy that lies: every answer is either refused with a code or has no effect. */

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import * as path from "node:path";
import { describe, test } from "node:test";
import { FIXTURE, hubWith, ID } from "./support/hub.mjs";
import { COMMIT, etagOf, gitHash, isLarge, sendJson } from "./support/hub_server.mjs";
import { api, embedderError } from "./support/models.mjs";

const { pull, EmbedderError } = api;
/** Most of their time these tests wait before another attempt. */
const TOGETHER = { concurrency: 16 };

const SIBLINGS = Object.entries(FIXTURE).map(([rfilename, bytes]) => ({
  rfilename,
  size: bytes.length,
  blobId: gitHash(bytes),
  ...(isLarge(bytes) && { lfs: { sha256: etagOf(bytes), size: bytes.length } }),
}));
/** The right list of files with one more, or with one of them changed. */
const withFile = (file) => ({ sha: COMMIT, siblings: [...SIBLINGS, { size: 1, blobId: "0".repeat(40), ...file }] });
const withConfig = (change) => ({
  sha: COMMIT,
  siblings: SIBLINGS.map((one) => (one.rfilename === "config.json" ? { ...one, ...change } : one)),
});

/** All files and folders around the cache. */
const around = ({ cacheFolder }) => readdirSync(path.dirname(cacheFolder), { recursive: true }).map(String);

/** Ends the connection with these bytes as the answer, whatever they are. */
const raw = (bytes) => (response) => response.socket.end(bytes);

describe("a list of files", TOGETHER, () => {
  const REFUSED = {
    "a size below zero": withConfig({ size: -1 }),
    "a size that is no number": withConfig({ size: Number.NaN }),
    "a size as text": withConfig({ size: "12" }),
    "half a byte": withConfig({ size: 1.5 }),
    "a size beyond all numbers": withConfig({ size: 1e308 }),
    "a size that no disk has": withConfig({ size: 2 ** 53 - 1 }),
    "a size that is a little too large": withConfig({ size: FIXTURE["config.json"].length + 1 }),
    "a size that is a little too small": withConfig({ size: FIXTURE["config.json"].length - 1 }),
    "a hash that is a path": withConfig({ blobId: "../../../../evil" }),
    "a hash with a slash": withConfig({ blobId: `${"0".repeat(20)}/${"0".repeat(19)}` }),
    "a hash in capitals": withConfig({ blobId: "A".repeat(40) }),
    "a hash with a line feed": withConfig({ blobId: `${"0".repeat(40)}\n` }),
    "a hash that is a list": withConfig({ lfs: { sha256: ["0".repeat(64)] } }),
    "the hash of other bytes": withConfig({ blobId: "0".repeat(40) }),
    "a commit that is a path": { sha: `../${"1".repeat(37)}`, siblings: SIBLINGS },
    "a commit with a line feed": { sha: `${COMMIT}\n`, siblings: SIBLINGS },
    "no files": { sha: COMMIT, siblings: [] },
    "files that are an object": { sha: COMMIT, siblings: { ...SIBLINGS } },
    "files that are numbers": { sha: COMMIT, siblings: [1, null, [], "config.json"] },
    "a text": "commit",
    nothing: null,
  };
  for (const [what, answer] of Object.entries(REFUSED)) {
    test(`${what} is refused`, async () => {
      const { hub, options } = await hubWith();
      hub.fault("hub", /api/, (response) => sendJson(response, answer), 10);
      await assert.rejects(pull(ID, options), (error) => {
        assert.ok(error instanceof EmbedderError, String(error));
        assert.match(error.code, /^(DOWNLOAD_FAILED|MODEL_UNSUPPORTED)$/, error.message);
        return true;
      });
      assert.deepEqual(
        around(options).filter((name) => name.includes("evil")),
        [],
      );
    });
  }

  const HARMLESS = {
    "a name that leads out": { rfilename: "../../../evil" },
    "a name of two dots": { rfilename: ".." },
    "a name from the root": { rfilename: "/evil" },
    "a name of Windows": { rfilename: "..\\..\\evil" },
    "a name with a drive": { rfilename: "C:evil" },
    "a name with a NUL": { rfilename: "evil\0.json" },
    "a name with an escape sequence": { rfilename: "evil\u001b[2J" },
    "a name with one of eight bits": { rfilename: "evil\u009b2J" },
    "an endless name": { rfilename: "evil/".repeat(10_000) },
    "the name of a prototype": { rfilename: "__proto__" },
    "a name that is an object": { rfilename: { toString: "evil" } },
    "a second file of the name": { rfilename: "README.md", size: 7 },
  };
  for (const [what, file] of Object.entries(HARMLESS)) {
    test(`${what} has no effect`, async () => {
      const { hub, options } = await hubWith();
      hub.fault("hub", /api/, (response) => sendJson(response, withFile(file)), 10);
      const snapshot = await pull(ID, options);
      assert.equal(await pull(ID, { ...options, offline: true, verify: true }), snapshot);
      assert.deepEqual(
        around(options).filter((name) => name.includes("evil")),
        [],
      );
    });
  }

  test("a list of twenty thousand files is read; one that is too large is not", async () => {
    const { hub, options } = await hubWith();
    const many = (count) => {
      const more = Array.from({ length: count }, (_, index) => ({
        rfilename: `data/${index}.json`,
        size: index,
        blobId: "0".repeat(40),
      }));
      return { sha: COMMIT, siblings: [...more, ...SIBLINGS] };
    };
    hub.fault("hub", /api/, (response) => sendJson(response, many(20_000)));
    await pull(ID, options);
    hub.fault("hub", /api/, (response) => sendJson(response, many(1_000_000)));
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "more than 10000000 bytes"));
  });

  for (const [what, beginning, piece] of [
    ["a list without end", `{"sha":"${COMMIT}","siblings":[`, "null,"],
    ["spaces without end", "", " "],
    ["brackets without end", "", "["],
  ]) {
    test(`${what} is given up on`, async () => {
      const { hub, options } = await hubWith();
      let sent = 0;
      hub.fault("hub", /api/, (response) => {
        const block = Buffer.from(piece.repeat(Math.ceil(65_536 / piece.length)));
        const send = () => {
          while (!response.destroyed) {
            sent += block.length;
            if (!response.write(block)) return response.once("drain", send);
          }
        };
        response.write(beginning);
        send();
      });
      await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "more than 10000000 bytes"));
      assert.ok(sent < 40_000_000, `${sent} bytes were sent`);
    });
  }

  test("deeply nested JSON is refused", async () => {
    for (const depth of [100_000, 4_000_000]) {
      const { hub, options } = await hubWith();
      hub.fault("hub", /api/, (response) => response.end(`${"[".repeat(depth)}${"]".repeat(depth)}`));
      await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "expected a"));
    }
  });
});

describe("an answer", TOGETHER, () => {
  const json = JSON.stringify({ sha: COMMIT, siblings: SIBLINGS });
  const REFUSED = {
    "that is no HTTP": raw("220 mail.example.org ESMTP\r\n\r\n"),
    "that is nothing": raw(""),
    "with a header without end": raw(`HTTP/1.1 200 OK\r\nX-A: ${"a".repeat(1 << 20)}\r\n\r\n`),
    "with a length below zero": raw(`HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n${json}`),
    "with a length that is no number": raw(`HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n${json}`),
    "with a length beyond its bytes": raw(`HTTP/1.1 200 OK\r\nContent-Length: ${json.length + 1}\r\n\r\n${json}`),
    "with a length short of its bytes": raw(`HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n${json}`),
    "with chunks that are none": raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "without a body": raw("HTTP/1.1 204 No Content\r\n\r\n"),
    "that was not asked for": raw("HTTP/1.1 304 Not Modified\r\n\r\n"),
    "that leads nowhere": raw("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    "that leads to a file": raw("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"),
    "that leads to a script": raw("HTTP/1.1 302 Found\r\nLocation: javascript:alert(1)\r\nContent-Length: 0\r\n\r\n"),
    "that leads to no URL": raw("HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n"),
    "that leads to itself": (response, { request }) => response.writeHead(307, { location: request.url }).end(),
    "that leads farther each time": (response, { request }) =>
      response.writeHead(302, { location: `/x${request.url}` }).end(),
    "of a status that nobody knows": raw("HTTP/1.1 599 ?\r\nContent-Length: 0\r\n\r\n"),
    "that is compressed though nobody asked": raw(
      "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    ),
  };
  for (const [what, reply] of Object.entries(REFUSED)) {
    test(`${what} is refused`, async () => {
      const { hub, options } = await hubWith();
      hub.fault("hub", /./, reply, 1000);
      await assert.rejects(pull(ID, options), (error) => {
        assert.ok(error instanceof EmbedderError, String(error));
        assert.match(error.code, /^(DOWNLOAD_FAILED|MODEL_NOT_FOUND)$/, error.message);
        return true;
      });
      assert.ok(hub.requests.length <= 6, `${hub.requests.length} requests`);
    });
  }

  const ONCE = {
    "no HTTP": raw("garbage\r\n\r\n"),
    "a length beyond its bytes": raw("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}"),
    "a part that was not asked for": raw("HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n\r\n{}"),
    "a part of elsewhere": raw(
      "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-6/7\r\nContent-Length: 2\r\n\r\n{}",
    ),
    "other bytes": (response, { file }) => response.end(Buffer.alloc(file.length, "x")),
    "no bytes": (response) => response.end(),
  };
  for (const [what, reply] of Object.entries(ONCE)) {
    test(`${what} for a file, once, is fixed by another attempt`, async () => {
      const { hub, options } = await hubWith();
      hub.fault("hub", /resolve.*tokenizer\.json/, reply, 1);
      const folder = await pull(ID, options);
      assert.equal(await pull(ID, { ...options, offline: true, verify: true }), folder);
    });
  }
});
