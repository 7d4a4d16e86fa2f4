import { constants, type Dirent, existsSync, promises as fs } from "node:fs";
import * as path from "node:path";
import { isObject } from "../json_file.js";
import { isPlainPath, MOST_SETTINGS, readRegularFile } from "../regular_file.js";
import { COMMIT, ETAG, type HubFile, type Listing } from "./listing.js";

/** Ends the file name of a ref that cannot be stored under its own name. */
const BESIDE = "%";

/**
 * One model in the cache, in the layout of Python's `huggingface_hub`:
 *
 * ```
 * models--org--name/refs/main                  text: the commit that the branch was at
 * models--org--name/blobs/<etag>               the bytes of a file, named by their hash
 * models--org--name/snapshots/<commit>/<file>  a link to the blob, or a copy if links are not possible
 * models--org--name/trees/<commit>.json        which files the commit has
 * ```
 */
export class ModelCache {
  readonly folder: string;
  readonly #symlinks: boolean;

  constructor(cacheFolder: string, model: string, symlinks: boolean) {
    this.folder = path.join(cacheFolder, `models--${model.replaceAll("/", "--")}`);
    this.#symlinks = symlinks;
  }

  blob(etag: string): string {
    return path.join(this.folder, "blobs", etag);
  }

  snapshot(commit: string): string {
    return path.join(this.folder, "snapshots", commit);
  }

  /** Path of a file of a snapshot. */
  file(commit: string, { name }: HubFile): string {
    return path.join(this.snapshot(commit), name);
  }

  /** The commit that a branch or tag was at when it was last looked up. */
  async commitOf(revision: string): Promise<string | undefined> {
    if (COMMIT.test(revision)) return revision;
    const commit = (await readText(this.#ref(revision))) ?? (await readText(this.#refBeside(revision)));
    return commit !== undefined && COMMIT.test(commit.trim()) ? commit.trim() : undefined;
  }

  async keepCommit(revision: string, commit: string): Promise<void> {
    if (revision === commit || (await this.commitOf(revision)) === commit) return;
    const write = (file: string) => fs.writeFile(file, commit);
    try {
      await replaceFile(this.#ref(revision), write);
      await fs.rm(this.#refBeside(revision), { force: true });
    } catch {
      await replaceFile(this.#refBeside(revision), write);
    }
  }

  /** The files of a commit; `undefined` if they were never looked up. */
  async listing(commit: string): Promise<Listing | undefined> {
    try {
      const tree: unknown = JSON.parse((await readText(this.#tree(commit))) ?? "");
      if (!isObject(tree) || tree.format_version !== 1 || !isObject(tree.files)) return undefined;
      const files = Object.entries(tree.files).flatMap(([name, entry]) => {
        const { size, blob_id: blobId, lfs_sha256: sha256 } = isObject(entry) ? entry : {};
        const etag = sha256 ?? blobId;
        return isPlainPath(name) ? [[name, { name, size, etag, blobId } as HubFile] as const] : [];
      });
      return { commit, files: new Map(files) };
    } catch {
      // A damaged file counts as missing: it is written again.
      return undefined;
    }
  }

  async keepListing({ commit, files }: Listing): Promise<void> {
    const entries = [...files].map(([name, { size, etag, blobId }]) => {
      return [name, { size, blob_id: blobId, ...(etag !== blobId && { lfs_sha256: etag, lfs_size: size }) }];
    });
    const tree = JSON.stringify({ format_version: 1, files: Object.fromEntries(entries) }, null, 1);
    await replaceFile(this.#tree(commit), (file) => fs.writeFile(file, tree));
  }

  /** Whether a snapshot has a file of the right size. */
  async has(commit: string, file: HubFile): Promise<boolean> {
    const found = await fs.stat(this.file(commit, file)).catch(() => undefined);
    return found?.isFile() === true && found.size === file.size;
  }

  /** The files that are in a snapshot, whichever program put them there. */
  async filesOf(commit: string): Promise<Listing> {
    const folder = this.snapshot(commit);
    const files = new Map<string, HubFile>();
    for (const { file } of await entriesBelow(folder)) {
      const stat = await fs.stat(file).catch(() => undefined);
      const name = path.relative(folder, file).split(path.sep).join("/");
      if (!stat?.isFile()) continue;
      // Without a list of files, a link to a blob tells the hash. The blob itself may be a link, to a file of another name.
      const blob = path.basename(await fs.readlink(file).catch(() => ""));
      const etag = ETAG.test(blob) ? blob : "";
      files.set(name, { name, size: stat.size, etag, blobId: etag });
    }
    return { commit, files };
  }

  /** Revisions that are at least partly in the cache. */
  async revisions(): Promise<string[]> {
    return [...new Set([...(await this.refs()), ...(await this.commits())])];
  }

  /** Branches and tags that were looked up. */
  async refs(): Promise<string[]> {
    const refs = path.join(this.folder, "refs");
    const found = await entriesBelow(refs);
    const named = found.filter(({ entry }) => entry.isFile()).map(({ file }) => path.relative(refs, file));
    return [...new Set(named.map((name) => revisionOf(name.split(path.sep).join("/"))))];
  }

  /** Commits of which at least some files are in the cache. */
  async commits(): Promise<string[]> {
    const found = await fs.readdir(path.join(this.folder, "snapshots")).catch(() => []);
    return found.filter((name) => COMMIT.test(name));
  }

  /** The files that only a commit has, its snapshot apart: what refers to it, and its list of files. */
  async filesAbout(commit: string): Promise<string[]> {
    const files = [this.#tree(commit)];
    for (const revision of await this.refs()) {
      if ((await this.commitOf(revision)) === commit) files.push(this.#ref(revision), this.#refBeside(revision));
    }
    return files;
  }

  /** Puts a blob into a snapshot. */
  async link(commit: string, hubFile: HubFile): Promise<void> {
    const blob = this.blob(hubFile.etag);
    const target = this.file(commit, hubFile);
    await replaceFile(target, async (file) => {
      // Relative, so that the cache can be moved.
      const relative = path.relative(path.dirname(target), blob);
      if (this.#symlinks && (await succeeds(fs.symlink(relative, file)))) return;
      // On Windows, few users have the right to create symbolic links; hard links need no right.
      if (await succeeds(fs.link(blob, file))) return;
      await fs.copyFile(blob, file, constants.COPYFILE_FICLONE);
    });
  }

  #ref(revision: string): string {
    return path.join(this.folder, "refs", revision);
  }

  /**
   * Where a ref is stored if its own place is taken: of two refs `a` and `a/b` (a tag and a branch, or one deleted since),
   * only one can have a file. Python's library does not store the second one. No revision has a `%` in its name.
   */
  #refBeside(revision: string): string {
    return path.join(this.folder, "refs", `${encodeURIComponent(revision)}${BESIDE}`);
  }

  #tree(commit: string): string {
    return path.join(this.folder, "trees", `${commit}.json`);
  }
}

/** The revision of a file in `refs`. */
function revisionOf(name: string): string {
  try {
    return name.endsWith(BESIDE) ? decodeURIComponent(name.slice(0, -BESIDE.length)) : name;
  } catch {
    return name;
  }
}

/** Free bytes on the disk of a folder that may not exist yet; `undefined` if the system does not say. */
export async function freeBytes(folder: string): Promise<number | undefined> {
  let existing = folder;
  while (!existsSync(existing) && path.dirname(existing) !== existing) existing = path.dirname(existing);
  const { bavail, bsize } = await fs.statfs(existing).catch(() => ({ bavail: Number.NaN, bsize: 1 }));
  return Number.isNaN(bavail) ? undefined : bavail * bsize;
}

/** Writes a temporary file and renames it: readers see all of it or nothing. */
async function replaceFile(file: string, write: (file: string) => Promise<void>): Promise<void> {
  await fs.mkdir(path.dirname(file), { recursive: true });
  const temporary = `${file}.${process.pid}-${Math.random().toString(36).slice(2, 10)}.tmp`;
  try {
    await write(temporary);
    await fs.rename(temporary, file);
  } catch (error) {
    await fs.rm(temporary, { force: true });
    throw error;
  }
}

async function readText(file: string): Promise<string | undefined> {
  try {
    return readRegularFile(file, MOST_SETTINGS).toString("utf8");
  } catch {
    return undefined;
  }
}

async function succeeds(work: Promise<void>): Promise<boolean> {
  return work.then(
    () => true,
    () => false,
  );
}

/** Everything below a folder, with its path; links are not followed. Nothing if there is no such folder. */
export async function entriesBelow(folder: string): Promise<{ entry: Dirent; file: string }[]> {
  const found = await fs.readdir(folder, { recursive: true, withFileTypes: true }).catch((): Dirent[] => []);
  return found.map((entry) => ({ entry, file: path.join(entry.parentPath ?? entry.path, entry.name) }));
}
