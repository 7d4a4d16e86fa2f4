/**
 * A server that speaks as much of the Hugging Face Hub's protocol as a download needs, and misbehaves on demand: `/api/models/<id>/revision/<revision>` and `/<id>/resolve/<revision>/<file>`, the latter with a redirect to
 * another host for large files, as on the Hub.
 */

import { createHash } from "node:crypto";
import { once } from "node:events";
import { readdirSync, readFileSync, statSync } from "node:fs";
import * as http from "node:http";
import * as https from "node:https";
import * as net from "node:net";
import * as path from "node:path";

/** Files of at least this size are large: named by their SHA-256 and served by the other host. */
const LFS_BYTES = 50_000;

export const COMMIT = "1".repeat(40);

/** The files of a folder as `{ name: Buffer }`. */
export function filesIn(folder) {
  const names = readdirSync(folder, { recursive: true }).filter((name) => statSync(path.join(folder, name)).isFile());
  return Object.fromEntries(
    names.map((name) => [name.split(path.sep).join("/"), readFileSync(path.join(folder, name))]),
  );
}

export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
export const gitHash = (bytes) => createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
export const isLarge = (bytes) => bytes.length >= LFS_BYTES;
/** Name of a file's blob in the cache. */
export const etagOf = (bytes) => (isLarge(bytes) ? sha256(bytes) : gitHash(bytes));

/**
 * @param {{ [id: string]: { files: { [name: string]: Buffer }, commit?: string, branches?: { [name: string]: string } } }} models
 * @param {{ tls?: { key: string, cert: string }, prefix?: string }} options
 */
export async function startHub(models, { tls, prefix = "" } = {}) {
  /** The requests so far: `{ host: "hub" | "cdn", path, range, authorization }`. */
  const requests = [];
  /** Faults still to come: `{ host, pattern, times, reply }`. */
  const faults = [];
  const sockets = new Set();
  const scheme = tls ? "https" : "http";

  const serve = (host, respond) => async (request, response) => {
    const { url, headers } = request;
    requests.push({ host, path: url, range: headers.range, authorization: headers.authorization });
    const fault = faults.find((one) => one.times > 0 && one.host === host && one.pattern.test(url));
    if (fault) fault.times--;
    if (!url.startsWith(prefix)) return refuse(response, 404);
    const asked = decodeURIComponent(url.slice(prefix.length).split("?")[0]);
    const normal = () => respond(asked, request, response);
    if (fault) await fault.reply(response, { request, normal, file: find(asked)?.bytes });
    else normal();
  };
  const listen = async (handler) => {
    const server = tls ? https.createServer(tls, handler) : http.createServer(handler);
    server.on("connection", (socket) => {
      sockets.add(socket);
      socket.on("close", () => sockets.delete(socket));
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return server;
  };

  const find = (asked) => {
    const [, id, revision, name] = /^\/(?:cdn\/)?([^/]+\/[^/]+)\/(?:resolve\/)?([^/]+)\/(.+)$/.exec(asked) ?? [];
    const model = models[id];
    const commit = model && commitOf(model, revision);
    return { model, commit, bytes: model?.files[name], id, name };
  };

  const cdn = await listen(
    serve("cdn", (asked, request, response) => sendBytes(request, response, find(asked).bytes, {})),
  );
  const hub = await listen(
    serve("hub", (asked, request, response) => {
      const [, listed, revision] = /^\/api\/models\/([^/]+\/[^/]+)\/revision\/(.+)$/.exec(asked) ?? [];
      if (listed) {
        if (!models[listed]) return refuse(response, 401, "RepoNotFound", "Repository not found");
        const at = commitOf(models[listed], revision);
        if (!at) return refuse(response, 404, "RevisionNotFound", `Invalid rev id: ${revision}`);
        return sendJson(response, describe(listed, models[listed], at));
      }
      const { model, id, commit, bytes, name } = find(asked);
      if (!model) return refuse(response, 401, "RepoNotFound");
      if (!commit) return refuse(response, 404, "RevisionNotFound");
      if (!bytes) return refuse(response, 404, "EntryNotFound", "Entry not found");
      const headers = { "x-repo-commit": commit, "accept-ranges": "bytes", etag: `"${gitHash(bytes)}"` };
      if (!isLarge(bytes)) return sendBytes(request, response, bytes, headers);
      // "localhost" and "127.0.0.1" are the same machine, but different hosts by name.
      const other = `${scheme}://localhost:${cdn.address().port}${prefix}`;
      const location = `${other}/cdn/${id}/${commit}/${name}?X-Amz-Signature=abc`;
      response.writeHead(302, {
        ...headers,
        location,
        "x-linked-etag": `"${sha256(bytes)}"`,
        "x-linked-size": bytes.length,
      });
      response.end(`Found. Redirecting to ${location}`);
    }),
  );

  return {
    endpoint: `${scheme}://127.0.0.1:${hub.address().port}${prefix}`,
    models,
    requests,
    /** Requests for files, as `host file range`. */
    fileRequests: () =>
      requests
        .filter((one) => !one.path.includes("/api/"))
        .map(({ host, path: asked, range }) =>
          [host, asked.split("?")[0].split("/").at(-1), range].filter(Boolean).join(" "),
        ),
    /** Answers the next `times` matching requests with `reply(response, { request, normal, file })`. */
    fault(host, pattern, reply, times = 1) {
      faults.push({ host, pattern, reply, times });
    },
    close() {
      for (const server of [hub, cdn]) server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

function commitOf({ commit = COMMIT, branches = { main: commit } }, revision) {
  return (
    branches[revision] ?? (Object.values(branches).includes(revision) || revision === commit ? revision : undefined)
  );
}

function describe(id, { files }, commit) {
  const siblings = Object.entries(files).map(([rfilename, bytes]) => ({
    rfilename,
    size: bytes.length,
    blobId: isLarge(bytes) ? gitHash(pointer(bytes)) : gitHash(bytes),
    ...(isLarge(bytes) && { lfs: { sha256: sha256(bytes), size: bytes.length, pointerSize: pointer(bytes).length } }),
  }));
  return { id, modelId: id, sha: commit, private: false, siblings };
}

/** What git itself holds of a large file. */
function pointer(bytes) {
  return Buffer.from(`version https://git-lfs.github.com/spec/v1\noid sha256:${sha256(bytes)}\nsize ${bytes.length}\n`);
}

function sendBytes(request, response, bytes, headers) {
  if (!bytes) return refuse(response, 404);
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  if (start >= bytes.length && start > 0) return refuse(response, 416);
  const partial = start > 0 && { "content-range": `bytes ${start}-${bytes.length - 1}/${bytes.length}` };
  response.writeHead(partial ? 206 : 200, { ...headers, ...partial, "content-length": bytes.length - start });
  response.end(bytes.subarray(start));
}

export function sendJson(response, value) {
  response.writeHead(200, { "content-type": "application/json" });
  response.end(JSON.stringify(value));
}

export function refuse(response, status, code, message, headers = {}) {
  response.writeHead(status, {
    ...headers,
    ...(code && { "x-error-code": code }),
    ...(message && { "x-error-message": message }),
  });
  response.end(message ?? "");
}

/** Sends the file from the start of the range up to its first `length` bytes, then calls `then`. */
export function sendUntil(length, then) {
  return (response, { request, file }) => {
    const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    const partial = start > 0 && { "content-range": `bytes ${start}-${file.length - 1}/${file.length}` };
    response.writeHead(partial ? 206 : 200, { ...partial, "content-length": file.length - start });
    response.write(file.subarray(start, length), () => then(response, file));
  };
}

/** Breaks the connection in the middle of a file. */
export const cutAfter = (length) => sendUntil(length, (response) => setTimeout(() => response.destroy(), 50));
/** Stalls in the middle of a file. */
export const stallAfter = (length) => sendUntil(length, () => {});

/** A proxy for `http:` (the whole URL as the path) and `https:` (CONNECT); `asked` lists its requests. */
export async function startProxy({ login } = {}) {
  const asked = [];
  const expected = login && `Basic ${Buffer.from(login).toString("base64")}`;
  const isAllowed = ({ headers }) => !expected || headers["proxy-authorization"] === expected;
  const server = http.createServer((request, response) => {
    if (!isAllowed(request)) return refuse(response, 407, "", "", { "proxy-authenticate": "Basic" });
    asked.push(`${request.method} ${request.url.split("?")[0]}`);
    const { headers, method } = request;
    const onward = http.request(request.url, { method, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    onward.on("error", () => response.destroy());
    request.pipe(onward);
  });
  server.on("connect", (request, socket) => {
    socket.on("error", () => {});
    if (!isAllowed(request)) return socket.end("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
    asked.push(`CONNECT ${request.url}`);
    const [host, port] = request.url.split(":");
    const onward = net.connect(Number(port), host, () => {
      socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
      onward.pipe(socket).pipe(onward);
    });
    onward.on("error", () => socket.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return { url: `http://127.0.0.1:${server.address().port}`, asked, close };
}
