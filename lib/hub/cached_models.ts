/** What is in the Hub's cache, which other programs share, and how to delete it. */

import { type BigIntStats, promises as fs } from "node:fs";
import * as path from "node:path";
import { EmbedderError } from "../errors.js";
import { entriesBelow, ModelCache } from "./cache.js";
import { ETAG } from "./listing.js";
import { checkRevision, invalidName, parseHubName } from "./pull.js";

/** A commit of a model of which at least some files are in the cache. */
export interface CachedRevision {
  /** Name of the model. */
  id: string;
  commit: string;
  /** Branches and tags that were at this commit when they were last looked up. */
  refs: string[];
  /** Of all its files, also those that it shares with another commit. */
  bytes: number;
  /** The snapshot. */
  folder: string;
}

/** All models in a cache folder whose names have the form `org/name`, in the order of their names. */
export async function cachedRevisions(cacheFolder: string): Promise<CachedRevision[]> {
  const names = await fs.readdir(cacheFolder).catch(() => []);
  const ids = names.flatMap((name) => {
    const [kind, ...parts] = name.split("--");
    const id = parts.join("/");
    return kind === "models" && parseHubName(id) ? [id] : [];
  });
  const models = await Promise.all(ids.sort().map((id) => revisionsOf(cacheFolder, id)));
  return models.flat();
}

async function revisionsOf(cacheFolder: string, id: string): Promise<CachedRevision[]> {
  const cache = new ModelCache(cacheFolder, id, true);
  const refs = await Promise.all((await cache.refs()).map(async (ref) => ({ ref, commit: await cache.commitOf(ref) })));
  const found = (await cache.commits()).sort().map(async (commit) => {
    const { files } = await cache.filesOf(commit);
    return {
      id,
      commit,
      refs: refs.flatMap((other) => (other.commit === commit ? [other.ref] : [])),
      bytes: [...files.values()].reduce((sum, { size }) => sum + size, 0),
      folder: cache.snapshot(commit),
    };
  });
  return Promise.all(found);
}

/** What `rm` is about to delete. */
export interface Deletion {
  id: string;
  commits: string[];
  /** Bytes that it frees on the disk. */
  freedBytes: number;
  /** Bytes in the store that Python's `huggingface_hub` shares between models. They stay: only it knows who uses them. */
  sharedBytes: number;
  /** Files and folders in the order in which they are deleted, so that no link ever leads nowhere. */
  paths: string[];
}

/**
 * What to delete so that a model, or one revision of it, is no longer in the cache. Blobs that another revision needs stay.
 *
 * @param model `"org/name"` for all that there is of it, or `"org/name@revision"`.
 * @throws EmbedderError `INVALID_ARGUMENT`; `MODEL_NOT_FOUND` if it is not in the cache; `MODEL_INVALID` if a folder of the
 * cache is a link, since what it leads to may be somebody else's.
 */
export async function planDeletion(cacheFolder: string, model: string): Promise<Deletion> {
  const named = parseHubName(model);
  if (!named) throw invalidName(model);
  const { id, revision } = named;
  const isWhole = !model.includes("@");
  if (!isWhole) checkRevision(revision);
  const cache = new ModelCache(cacheFolder, id, true);
  for (const name of ["", "snapshots", "refs", "trees", "blobs"]) await checkNoLink(path.join(cache.folder, name));
  const all = await cache.commits();
  const commit = isWhole ? undefined : await cache.commitOf(revision);
  const commits = all.filter((other) => isWhole || other === commit);
  const isThere = isWhole ? (await lstat(cache.folder)) !== undefined : commits.length > 0;
  if (!isThere) {
    const others = (await cache.revisions()).map((other) => `${id}@${other}`).join(", ");
    const hint = others && ` (it holds ${others})`;
    throw new EmbedderError("MODEL_NOT_FOUND", `${model} is not in the cache ${cacheFolder}${hint}`);
  }
  const kept = all.filter((other) => !commits.includes(other));
  const paths = commits.map((other) => cache.snapshot(other));
  if (kept.length === 0) {
    paths.push(cache.folder);
  } else {
    const needed = new Set((await Promise.all(kept.map((other) => blobsOf(cache, other)))).flat());
    for (const other of commits) {
      const blobs = (await blobsOf(cache, other)).filter((blob) => !needed.has(blob));
      paths.push(...(await cache.filesAbout(other)), ...blobs);
    }
  }
  return { id, commits, paths, ...(await bytesOf(cache, paths)) };
}

/** Deletes what was planned. A program that has one of the files open keeps it, except on Windows, where this fails. */
export async function carryOut({ paths }: Deletion): Promise<void> {
  for (const target of paths) await fs.rm(target, { recursive: true, force: true });
}

async function checkNoLink(folder: string): Promise<void> {
  const stat = await lstat(folder);
  if (!stat?.isSymbolicLink()) return;
  throw new EmbedderError(
    "MODEL_INVALID",
    `${folder} is a link out of the cache: delete it, and what it leads to, by hand`,
  );
}

/** The blobs of a commit: those that its snapshot links to, and those that its list of files names. */
async function blobsOf(cache: ModelCache, commit: string): Promise<string[]> {
  const listed = [...((await cache.listing(commit))?.files.values() ?? [])].map(({ etag }) => etag);
  const blobs = new Set(listed.filter((etag) => ETAG.test(etag)).map((etag) => cache.blob(etag)));
  for (const { file } of await entriesBelow(cache.snapshot(commit))) {
    const link = await fs.readlink(file).catch(() => undefined);
    const target = link && path.resolve(path.dirname(file), link);
    // A link to anywhere else is only removed itself.
    if (target && target === cache.blob(path.basename(target))) blobs.add(target);
  }
  return [...blobs];
}

/** How many bytes are freed, and how many stay, if files and folders of a model are deleted. */
async function bytesOf(cache: ModelCache, paths: string[]): Promise<Pick<Deletion, "freedBytes" | "sharedBytes">> {
  /** How many names of a file are deleted: its bytes are freed with the last one. */
  const names = new Map<bigint, { stat: BigIntStats; count: number }>();
  let sharedBytes = 0;
  const below = await Promise.all(
    paths.map(async (target) => [target, ...(await entriesBelow(target)).map(({ file }) => file)]),
  );
  for (const entry of new Set(below.flat())) {
    const stat = await lstat(entry);
    if (stat?.isFile()) {
      const count = (names.get(stat.ino)?.count ?? 0) + 1;
      names.set(stat.ino, { stat, count });
    } else if (stat?.isSymbolicLink() && entry === cache.blob(path.basename(entry))) {
      sharedBytes += await fs.stat(entry).then(
        ({ size }) => size,
        () => 0,
      );
    }
  }
  const freed = [...names.values()].filter(({ stat, count }) => BigInt(count) >= stat.nlink);
  return { freedBytes: freed.reduce((sum, { stat }) => sum + Number(stat.size), 0), sharedBytes };
}

async function lstat(file: string): Promise<BigIntStats | undefined> {
  return fs.lstat(file, { bigint: true }).catch(() => undefined);
}
