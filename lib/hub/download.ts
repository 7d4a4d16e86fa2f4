import { createHash, type Hash } from "node:crypto";
import { promises as fs } from "node:fs";
import * as path from "node:path";
import { EmbedderError, throwIfAborted } from "../errors.js";
import { type HubClient, header, type Subject } from "./client.js";
import type { HubFile } from "./listing.js";
import { Part } from "./part.js";
import { TransferError } from "./transfer_error.js";

export interface Download {
  client: HubClient;
  file: HubFile;
  /** Path of the complete blob. */
  blob: string;
  /** Path of the file below the endpoint. */
  url: string;
  subject: Subject & { file: string };
  /** Whether to check the hash of a blob that is already there. */
  verify: boolean;
  signal: AbortSignal | undefined;
  /** Called with the number of bytes of the file that are there. */
  onBytes: (bytes: number) => void;
}

/** Wrong bytes may be a hiccup of a proxy once; if they come twice, the server sends them. */
const WRONG_CONTENTS = 2;

/**
 * Downloads a file as a blob of the cache and checks its hash. Resumes an interrupted download of this process or another,
 * and waits while another process is downloading the file.
 *
 * @throws EmbedderError
 */
export async function download(options: Download): Promise<void> {
  const { blob, file, verify, signal, onBytes } = options;
  await fs.mkdir(path.dirname(blob), { recursive: true });
  const { size } = await fs.stat(blob).catch(() => file);
  // A blob whose size differs from its file's is damaged.
  if (size !== file.size || (verify && !(await isIntact(blob, file, signal)))) await fs.rm(blob, { force: true });
  for (let wrong = 0; ; ) {
    const part = await Part.claim(blob, signal, onBytes);
    if (!part) break;
    let verdict: Verdict;
    try {
      verdict = await fill(part, options);
    } catch (error) {
      // Do not keep a full disk full.
      if (isNoSpace(error)) await part.discard();
      else await part.release();
      throwIfAborted(signal);
      throw isNoSpace(error) ? noSpace(blob, file, error) : error;
    }
    if (verdict.isRight) {
      if (await part.publish()) break;
      continue;
    }
    await part.discard();
    // The rest of an earlier download may have been wrong from the start, which is not the server's fault.
    if (verdict.wasResumed) continue;
    if (++wrong < WRONG_CONTENTS) continue;
    throw new EmbedderError(
      "DOWNLOAD_FAILED",
      `${file.name}: the downloaded bytes are not those of the repository (expected ${file.size} bytes with hash ${file.etag}, ` +
        `found ${verdict.found}); a proxy or mirror may have changed them`,
    );
  }
  onBytes(file.size);
}

interface Verdict {
  isRight: boolean;
  /** Whether some of the bytes are from an earlier download. */
  wasResumed: boolean;
  found: string;
}

/** Downloads the bytes that a part lacks. */
async function fill(part: Part, { client, file, url, subject, onBytes }: Download): Promise<Verdict> {
  const handle = await part.open();
  try {
    let { hash, bytes } = await hashOf(handle, file);
    let wasResumed = bytes > 0;
    const retries = client.retries();
    let farthest = bytes;
    while (bytes < file.size) {
      onBytes(bytes);
      try {
        const range: Record<string, string> = bytes > 0 ? { range: `bytes=${bytes}-` } : {};
        const response = await client.get(url, subject, range);
        if (bytes > 0 && !continuesAt(bytes, response.status, header(response.headers, "content-range"))) {
          hash = newHash(file);
          bytes = 0;
          wasResumed = false;
          await handle.truncate(0);
        }
        for await (const chunk of response.body) {
          // More bytes than the file has: no need to wait for the end.
          if (bytes + chunk.length > file.size) return { isRight: false, wasResumed, found: "more bytes" };
          await writeAll(handle, chunk, bytes);
          hash.update(chunk);
          bytes += chunk.length;
          // Only new bytes are progress: a server that starts over each time makes none.
          if (bytes > farthest) retries.reset();
          farthest = Math.max(farthest, bytes);
          onBytes(bytes);
        }
        if (bytes < file.size) throw new TransferError(`only ${bytes} of ${file.size} bytes of ${file.name} came`);
      } catch (error) {
        await retries.after(error);
      }
    }
    const found = hash.digest("hex");
    // The name promises the contents: they have to be on the disk before the file gets it.
    if (found === file.etag) await handle.sync();
    return { isRight: found === file.etag, wasResumed, found };
  } finally {
    await handle.close();
  }
}

/** Whether a file exists and matches its size and hash. @throws AbortError */
export async function isIntact(
  path: string,
  file: HubFile,
  signal: AbortSignal | undefined,
  onBytes: (bytes: number) => void = () => {},
): Promise<boolean> {
  const handle = await fs.open(path).catch(() => undefined);
  if (!handle) return false;
  try {
    const { size } = await handle.stat();
    if (size !== file.size) return false;
    const hash = newHash(file);
    await hashBytes(handle, hash, size, (bytes) => {
      throwIfAborted(signal);
      onBytes(bytes);
    });
    return hash.digest("hex") === file.etag;
  } finally {
    await handle.close();
  }
}

/** The hash of a part's contents so far; a part that is too long is emptied. */
async function hashOf(handle: fs.FileHandle, file: HubFile): Promise<{ hash: Hash; bytes: number }> {
  const hash = newHash(file);
  const { size } = await handle.stat();
  if (size > file.size) {
    await handle.truncate(0);
    return { hash, bytes: 0 };
  }
  return { hash, bytes: await hashBytes(handle, hash, size, () => {}) };
}

/** Hashes the first `size` bytes of a file; resolves to the number of bytes read. */
async function hashBytes(
  handle: fs.FileHandle,
  hash: Hash,
  size: number,
  onBytes: (bytes: number) => void,
): Promise<number> {
  const block = Buffer.allocUnsafe(1 << 20);
  let bytes = 0;
  while (bytes < size) {
    const { bytesRead } = await handle.read(block, 0, Math.min(block.length, size - bytes), bytes);
    if (bytesRead === 0) break;
    hash.update(block.subarray(0, bytesRead));
    bytes += bytesRead;
    onBytes(bytes);
  }
  return bytes;
}

/** The hash that a file's `etag` is: SHA-256 of its bytes, or git's SHA-1 of a header and its bytes. */
function newHash({ etag, size }: HubFile): Hash {
  return etag.length === 64 ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

function continuesAt(bytes: number, status: number, contentRange: string | undefined): boolean {
  return status === 206 && contentRange?.startsWith(`bytes ${bytes}-`) === true;
}

/** Writes at a position rather than at the end: see `Part` for the reason. */
async function writeAll(handle: fs.FileHandle, chunk: Buffer, position: number): Promise<void> {
  for (let written = 0; written < chunk.length; ) {
    const { bytesWritten } = await handle.write(chunk, written, chunk.length - written, position + written);
    written += bytesWritten;
  }
}

/** The disk or the user's quota is full, or a file size limit is reached. */
function isNoSpace(error: unknown): boolean {
  return ["ENOSPC", "EDQUOT", "EFBIG"].includes((error as NodeJS.ErrnoException).code ?? "");
}

function noSpace(blob: string, file: HubFile, cause: unknown): EmbedderError {
  return new EmbedderError(
    "DOWNLOAD_FAILED",
    `no space for ${file.name} (${megabytes(file.size)}) in ${path.dirname(blob)}: ${(cause as Error).message}; ` +
      "make room, or set HF_HOME or HF_HUB_CACHE to a folder on another disk",
    { cause },
  );
}

export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
