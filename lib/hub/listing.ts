import { EmbedderError } from "../errors.js";
import { isObject } from "../json_file.js";
import { isPlainPath } from "../regular_file.js";
import type { HubClient } from "./client.js";

/** The files of a repository at one commit. */
export interface Listing {
  commit: string;
  files: Map<string, HubFile>;
}

export interface HubFile {
  /** Path in the repository, with `/`. */
  name: string;
  /** In bytes. */
  size: number;
  /** Names the file in the cache: the SHA-256 of a large file's bytes, git's hash of a small one. */
  etag: string;
  /** Git's hash of what the repository itself contains: for a large file, a pointer to it. */
  blobId: string;
}

export const COMMIT = /^[0-9a-f]{40}$/;
/** A file's hash: git's, or SHA-256. */
export const ETAG = /^([0-9a-f]{40}|[0-9a-f]{64})$/;

/** Asks the Hub which files a revision has. @throws EmbedderError */
export async function fetchListing(
  client: HubClient,
  model: string,
  revision: string,
  attempts?: number,
): Promise<Listing> {
  const path = `/api/models/${model}/revision/${encodeURIComponent(revision)}?blobs=true`;
  const answer = await client.json(path, { model, revision }, attempts);
  const commit = isObject(answer) ? answer.sha : undefined;
  const siblings = isObject(answer) ? answer.siblings : undefined;
  if (typeof commit !== "string" || !COMMIT.test(commit) || !Array.isArray(siblings)) {
    const message = `${path}: expected a Hub's description of a model: its commit and files`;
    throw new EmbedderError("DOWNLOAD_FAILED", message);
  }
  if (COMMIT.test(revision) && revision !== commit) {
    throw new EmbedderError("DOWNLOAD_FAILED", `${path}: asked for commit ${revision}, was given ${commit}`);
  }
  const files = new Map<string, HubFile>();
  for (const sibling of siblings) {
    const { rfilename: name, size, blobId, lfs } = isObject(sibling) ? sibling : {};
    // Files that could lie outside the folder are ignored.
    if (typeof name !== "string" || !isPlainPath(name)) continue;
    const etag = isObject(lfs) ? lfs.sha256 : blobId;
    if (
      typeof blobId !== "string" ||
      typeof etag !== "string" ||
      !ETAG.test(etag) ||
      !Number.isSafeInteger(size) ||
      (size as number) < 0
    ) {
      const message = `${path}: ${name} has no size or hash; a mirror of the Hub must pass on the answer to ?blobs=true as it is`;
      throw new EmbedderError("DOWNLOAD_FAILED", message);
    }
    files.set(name, { name, size: size as number, etag, blobId });
  }
  return { commit, files };
}
