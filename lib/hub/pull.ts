import { onAbort } from "../abort.js";
import { coded, EmbedderError, ThrownByCaller, throwIfAborted, toEmbedderError } from "../errors.js";
import { knownModel, knownModelByShortName } from "../known_models.js";
import { invalid } from "../option_rules.js";
import { isPlainPath } from "../regular_file.js";
import { freeBytes, ModelCache } from "./cache.js";
import { HubClient } from "./client.js";
import { download, isIntact, megabytes } from "./download.js";
import { fetchListing, type HubFile, type Listing } from "./listing.js";
import { modelFiles, type Snapshot, type WantedWeights } from "./model_files.js";
import { bytesOfPart } from "./part.js";
import { checkPullOptions, type PullOptions, type PullProgress } from "./pull_options.js";
import { type HubSettings, hubSettings } from "./settings.js";
import { TransferError } from "./transfer_error.js";

/** A model on the Hub. */
export interface HubModel {
  id: string;
  revision: string;
}

/** Fewer than for a download, since nothing has been downloaded yet. */
const LOOKUP_ATTEMPTS = 3;
const PROGRESS_INTERVAL_MS = 100;

const ID = /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/;

/** Parses `org/name` or `org/name@revision`; `undefined` for anything else. */
export function parseHubName(text: string): HubModel | undefined {
  const [, id = "", revision] = /^([^@]*)(?:@(.+))?$/.exec(text) ?? [];
  if (!ID.test(id) || id.length > 96 || /--|\.\.|\.git$/.test(id)) return undefined;
  const known = knownModel(id);
  return { id: known?.id ?? id, revision: revision ?? known?.revision ?? "main" };
}

/**
 * Downloads a model from the Hugging Face Hub into its standard cache, which Python's libraries share, or finds it there.
 * Downloads only the files that are needed to load it, and checks each against its hash. A pinned commit in the cache needs
 * no network; a branch is looked up, and if the Hub cannot be reached, its cached state is used.
 *
 * ```js
 * const folder = await pull("nomic-ai/CodeRankEmbed");
 * ```
 *
 * @param model `"org/name"` or `"org/name@revision"`.
 * @returns The snapshot's folder, which `Embedder.load` takes.
 * @throws EmbedderError `INVALID_ARGUMENT`, `MODEL_NOT_FOUND` (no such model, revision or file, or not in the cache),
 * `MODEL_INVALID`, `MODEL_UNSUPPORTED`, `ACCESS_DENIED`, `DOWNLOAD_FAILED`, or `ABORT_ERR` (an `AbortError`).
 */
export async function pull(model: string, options?: PullOptions): Promise<string> {
  return coded(async () => {
    const { revision, onnx, ...settings } = checkPullOptions(options);
    const named = typeof model === "string" ? parseHubName(model) : undefined;
    if (!named) throw invalidName(model);
    const chosen = { ...named, ...(revision !== undefined && { revision }) };
    return pullWeights(chosen, { safetensors: true, onnx: onnx ? "f32" : undefined }, settings);
  });
}

/** The error for what is not `org/name` or `org/name@revision`. */
export function invalidName(model: unknown): EmbedderError {
  const known = typeof model === "string" ? knownModelByShortName(model) : undefined;
  const expected = known ? `the full name ${known.id}` : 'a name on the Hub such as "nomic-ai/CodeRankEmbed"';
  return invalid("model", expected, model);
}

/** @throws EmbedderError `INVALID_ARGUMENT` for what is no name of a branch, tag or commit. */
export function checkRevision(revision: string): void {
  if (isPlainPath(revision) && !/[\s@?#%~^*[]/.test(revision) && revision.isWellFormed()) return;
  throw invalid("revision", "a branch, tag or commit", revision);
}

/** As `pull`, with the weights that a backend reads. @throws EmbedderError, ThrownByCaller */
export async function pullWeights(
  model: HubModel,
  wanted: WantedWeights,
  options: Omit<PullOptions, "revision" | "onnx">,
): Promise<string> {
  checkRevision(model.revision);
  throwIfAborted(options.signal);
  const settings = hubSettings(options);
  const stop = new AbortController();
  // A signal of this call's own, for the listeners that are added below: many calls may share the caller's signal.
  const stopWaiting = onAbort(options.signal, () => stop.abort(options.signal?.reason));
  try {
    return await new Pull(model, wanted, settings, { ...options, signal: stop.signal }).run();
  } catch (error) {
    throw downloadError(error, settings.cacheFolder);
  } finally {
    stopWaiting();
  }
}

class Pull {
  readonly #name: string;
  readonly #cache: ModelCache;
  readonly #client: HubClient;

  constructor(
    readonly model: HubModel,
    readonly wanted: WantedWeights,
    readonly settings: HubSettings,
    readonly options: Pick<PullOptions, "signal" | "onProgress" | "verify">,
  ) {
    this.#name = `${model.id}@${model.revision}`;
    this.#cache = new ModelCache(settings.cacheFolder, model.id, settings.symlinks);
    this.#client = new HubClient(settings, options.signal);
  }

  async run(): Promise<string> {
    const { id, revision } = this.model;
    const cached = await this.#cache.commitOf(revision);
    // A commit never changes: if all listed files are there, it is complete.
    const listed = cached === undefined ? undefined : await this.#cache.listing(cached);
    const isThere = listed !== undefined && (await this.#isWhole(listed));
    const isPinned = cached === revision && isThere;
    if (isPinned && !this.options.verify) return this.#cache.snapshot(cached);
    if (this.settings.offline) return this.#fromCache(cached, undefined);
    try {
      const attempts = isThere ? 1 : LOOKUP_ATTEMPTS;
      const listing = isPinned ? listed : await fetchListing(this.#client, id, revision, attempts);
      const downloaded = await this.#download(listing);
      // Only now: until then the revision means the commit whose files are there.
      await this.#remember(listing).catch((error) => {
        // A complete cache may be read-only.
        if (downloaded) throw error;
      });
      return this.#cache.snapshot(listing.commit);
    } catch (error) {
      if (!(error instanceof TransferError)) throw error;
      return await this.#fromCache(cached, error);
    } finally {
      await this.#client.close();
    }
  }

  async #remember(listing: Listing): Promise<void> {
    if (!(await this.#cache.listing(listing.commit))) await this.#cache.keepListing(listing);
    await this.#cache.keepCommit(this.model.revision, listing.commit);
  }

  /** The cached snapshot, if it is complete. */
  async #fromCache(commit: string | undefined, unreachable: TransferError | undefined): Promise<string> {
    const why = unreachable?.message ?? "offline mode is on (option offline, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)";
    const { cacheFolder } = this.settings;
    if (commit === undefined || (await this.#cache.filesOf(commit)).files.size === 0) {
      const others = await this.#cache.revisions();
      const hint =
        others.length > 0 ? ` (it holds ${others.map((other) => `${this.model.id}@${other}`).join(", ")})` : "";
      throw (
        unreachable ??
        new EmbedderError("MODEL_NOT_FOUND", `${this.#name} is not in the cache ${cacheFolder}${hint}, and ${why}`)
      );
    }
    const snapshot = this.#cache.snapshot(commit);
    // Python may have downloaded it without a list of the commit's files: then the model's own files tell.
    const listing = (await this.#cache.listing(commit)) ?? (await this.#cache.filesOf(commit));
    if (await this.#isWhole(listing)) {
      if (this.options.verify) await this.#verify(listing, why);
      return snapshot;
    }
    if (unreachable) throw unreachable;
    const missing = (await this.#missing(listing)).join(", ");
    const message = `${this.#name} is in the cache without ${missing} (${snapshot}), and ${why}`;
    throw new EmbedderError("MODEL_NOT_FOUND", message);
  }

  async #isWhole(listing: Listing): Promise<boolean> {
    return (await this.#missing(listing)).length === 0;
  }

  /** @throws EmbedderError `MODEL_INVALID` naming a file of the snapshot whose bytes are not those of its hash. */
  async #verify(listing: Listing, why: string): Promise<void> {
    const files = await this.#filesOf(listing, async () => {});
    const report = new Report(files, files, this.options.onProgress);
    for (const file of files) {
      if (await this.#isIntact(listing.commit, file, report)) {
        report.finished(file);
        continue;
      }
      const wrong = file.etag ? `its bytes do not have the hash ${file.etag}` : "the cache does not tell its hash";
      const message = `${this.#cache.file(listing.commit, file)}: ${wrong}, and it cannot be downloaded again: ${why}`;
      throw new EmbedderError("MODEL_INVALID", message);
    }
  }

  /** Files of the model that are missing in its snapshot, as far as the existing files tell. */
  async #missing(listing: Listing): Promise<string[]> {
    const missing: string[] = [];
    const note = async (names: string[]) => {
      for (const name of names) {
        const file = listing.files.get(name);
        if (file && !(await this.#cache.has(listing.commit, file))) missing.push(name);
      }
      // Without them, what else is missing is unknown.
      if (missing.length > 0) throw new Incomplete();
    };
    try {
      await note(await modelFiles(this.#snapshot(listing), this.wanted, note));
    } catch (error) {
      if (error instanceof Incomplete) return missing;
      // This state of the repository is not usable; only the Hub knows whether another one is.
      if (error instanceof EmbedderError) return [`what makes it a model (${error.message})`];
      throw error;
    }
    return missing;
  }

  /** Completes the snapshot; resolves to whether something was missing. */
  async #download(listing: Listing): Promise<boolean> {
    // They tell which files the model has; few and small, so their progress is not reported.
    const files = await this.#filesOf(listing, async (first) => {
      for (const name of first) await this.#fetch(listing, fileOf(listing, name));
    });
    const lacking: HubFile[] = [];
    for (const file of files) if (!(await this.#cache.has(listing.commit, file))) lacking.push(file);
    await this.#checkSpace(lacking);
    const toDo = this.options.verify ? files : lacking;
    const report = new Report(files, toDo, this.options.onProgress);
    for (const file of toDo) await this.#fetch(listing, file, report);
    return lacking.length > 0;
  }

  async #filesOf(listing: Listing, fetch: (files: string[]) => Promise<void>): Promise<HubFile[]> {
    const names = await modelFiles(this.#snapshot(listing), this.wanted, fetch);
    return names.map((name) => fileOf(listing, name));
  }

  /** @throws EmbedderError `DOWNLOAD_FAILED` if the disk has no space for what is missing. */
  async #checkSpace(lacking: HubFile[]): Promise<void> {
    let needed = bytesOf(lacking);
    for (const { etag } of lacking) needed -= await bytesOfPart(this.#cache.blob(etag));
    const free = await freeBytes(this.#cache.folder);
    if (free === undefined || free >= needed) return;
    throw new EmbedderError(
      "DOWNLOAD_FAILED",
      `${this.#name} takes another ${megabytes(needed)}, but ${this.settings.cacheFolder} has only ${megabytes(free)} free; ` +
        "make room, or set HF_HOME or HF_HUB_CACHE to a folder on another disk",
    );
  }

  /** Downloads a file into the snapshot, unless it is there; with `verify`, unless it is there and intact. */
  async #fetch({ commit }: Listing, file: HubFile, report?: Report): Promise<void> {
    const { signal, verify = false } = this.options;
    throwIfAborted(signal);
    if (!(verify ? await this.#isIntact(commit, file, report) : await this.#cache.has(commit, file))) {
      const { id, revision } = this.model;
      await download({
        client: this.#client,
        file,
        blob: this.#cache.blob(file.etag),
        url: `/${id}/resolve/${commit}/${file.name.split("/").map(encodeURIComponent).join("/")}`,
        subject: { model: id, revision, file: file.name },
        verify,
        signal,
        onBytes: (bytes) => report?.bytes(file, bytes),
      });
      await this.#cache.link(commit, file);
    }
    report?.finished(file);
  }

  #isIntact(commit: string, file: HubFile, report: Report | undefined): Promise<boolean> {
    const onBytes = (bytes: number) => report?.bytes(file, bytes, { isVerification: true });
    return isIntact(this.#cache.file(commit, file), file, this.options.signal, onBytes);
  }

  #snapshot(listing: Listing): Snapshot {
    return { name: this.#name, listing, folder: this.#cache.snapshot(listing.commit) };
  }
}

class Incomplete extends Error {}

/** Reports the progress of a pull from time to time. */
class Report {
  readonly #total: number;
  readonly #onProgress: PullOptions["onProgress"];
  #done: number;
  #reportedAt = 0;

  constructor(files: HubFile[], toDo: HubFile[], onProgress: PullOptions["onProgress"]) {
    this.#total = bytesOf(files);
    this.#done = this.#total - bytesOf(toDo);
    this.#onProgress = onProgress;
  }

  bytes(file: HubFile, bytes: number, kind: Pick<PullProgress, "isVerification"> = {}): void {
    if (bytes < file.size && Date.now() - this.#reportedAt < PROGRESS_INTERVAL_MS) return;
    this.#reportedAt = Date.now();
    this.#onProgress?.({ file: file.name, ...kind, done: this.#done + bytes, total: this.#total });
  }

  finished({ size }: HubFile): void {
    this.#done += size;
  }
}

function fileOf({ files, commit }: Listing, name: string): HubFile {
  const file = files.get(name);
  // `modelFiles` names files of the listing only.
  if (!file) throw new Error(`${name} is no file of ${commit}`);
  return file;
}

function bytesOf(files: HubFile[]): number {
  return files.reduce((sum, { size }) => sum + size, 0);
}

/** Adds context to errors of the file system and to unforeseen ones; errors of this package stay as they are. */
function downloadError(cause: unknown, cacheFolder: string): unknown {
  if (cause instanceof EmbedderError || cause instanceof ThrownByCaller) return cause;
  const { message } = toEmbedderError(cause);
  const doing = (cause as NodeJS.ErrnoException).syscall
    ? `cannot write into the cache ${cacheFolder}`
    : "the download failed";
  const advice = "HF_HOME or HF_HUB_CACHE name another folder";
  return new EmbedderError("DOWNLOAD_FAILED", `${doing}: ${message}; ${advice}`, { cause });
}
