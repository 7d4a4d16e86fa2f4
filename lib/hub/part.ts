import { createHash, randomBytes } from "node:crypto";
import { promises as fs } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { pause } from "./transfer_error.js";

/** How often an owner updates its part's time of modification. */
const HEARTBEAT_MS = 1_000;
/** After how long without an update an owner counts as gone; shorter if its process on this machine has ended. */
const SILENCE_MS = 30_000;
const SILENCE_OF_ENDED_MS = 3_000;
const POLL_MS = 250;

/** Process ids are valid on their own machine only. */
const HOST = createHash("sha256").update(os.hostname()).digest("hex").slice(0, 8);

/**
 * The beginning of a blob while it is downloaded: `<blob>.semantic-search.<host>-<pid>-<random>.incomplete`, or without
 * the owner in its name if the download was given up.
 *
 * The name is the lock: a process owns a part that it has renamed to its own name, and the others wait. Any process may
 * take over a part whose owner has stopped updating it. No lock outlives its owner for long, and taking one from a slow
 * owner by mistake does no harm: both write the same bytes to the same places, and both check them.
 */
export class Part {
  readonly #blob: string;
  readonly #file: string;
  readonly #heartbeat: NodeJS.Timeout;

  private constructor(blob: string, file: string) {
    this.#blob = blob;
    this.#file = file;
    this.#heartbeat = setInterval(() => touch(file), HEARTBEAT_MS).unref();
  }

  /**
   * A part of the blob that only this call owns, with what others have downloaded; `undefined` once the blob exists.
   *
   * @param onWait Called from time to time with the number of bytes that another process has downloaded.
   * @throws AbortError
   */
  static async claim(
    blob: string,
    signal: AbortSignal | undefined,
    onWait: (bytes: number) => void,
  ): Promise<Part | undefined> {
    const own = `${blob}.semantic-search.${HOST}-${process.pid}-${randomBytes(4).toString("hex")}.incomplete`;
    for (;;) {
      if (await exists(blob)) return undefined;
      const parts = await partsOf(blob);
      const taken = parts.find(isTaken);
      if (taken) onWait(taken.bytes);
      else if (parts[0] ? await take(parts[0].file, own) : await create(own)) {
        const rival = (await partsOf(blob)).find((part) => part.file !== own && isTaken(part));
        const part = new Part(blob, own);
        // Another process may have published the blob between both looks at the folder.
        if (await exists(blob)) {
          await part.discard();
          return undefined;
        }
        if (!rival) return part;
        // Two claims at the same moment: the later one sees the earlier one, steps back and waits.
        await part.release();
      }
      await pause(POLL_MS * (0.5 + Math.random()), signal);
    }
  }

  open(): Promise<fs.FileHandle> {
    return fs.open(this.#file, "r+");
  }

  /** Turns the part into the blob. False if another process has taken it over meanwhile. */
  async publish(): Promise<boolean> {
    try {
      await fs.rename(this.#file, this.#blob);
    } catch (error) {
      // Windows does not replace a file that is in use; it has the same bytes.
      if (await exists(this.#blob)) await this.discard();
      else if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
      else throw error;
    } finally {
      clearInterval(this.#heartbeat);
    }
    return true;
  }

  /** Leaves the part to the next process. */
  async release(): Promise<void> {
    clearInterval(this.#heartbeat);
    const { size } = await fs.stat(this.#file).catch(() => ({ size: 0 }));
    if (size === 0) await fs.rm(this.#file, { force: true });
    else await fs.rename(this.#file, `${this.#blob}.semantic-search.incomplete`).catch(() => {});
  }

  async discard(): Promise<void> {
    clearInterval(this.#heartbeat);
    await fs.rm(this.#file, { force: true });
  }
}

interface Found {
  file: string;
  bytes: number;
  silentMs: number;
  /** The process that owns it, if that is on this machine. */
  pid: number | undefined;
  hasOwner: boolean;
}

/** Bytes of a blob that are already there. */
export async function bytesOfPart(blob: string): Promise<number> {
  return Math.max(0, ...(await partsOf(blob)).map(({ bytes }) => bytes));
}

async function partsOf(blob: string): Promise<Found[]> {
  const folder = path.dirname(blob);
  const pattern = /^\.semantic-search(?:\.([0-9a-f]{8})-(\d+)-[0-9a-f]+)?\.incomplete$/;
  const parts: Found[] = [];
  for (const name of await fs.readdir(folder).catch(() => [])) {
    if (!name.startsWith(path.basename(blob))) continue;
    const match = pattern.exec(name.slice(path.basename(blob).length));
    if (!match) continue;
    const [, host, pid] = match;
    const file = path.join(folder, name);
    const stat = await fs.stat(file).catch(() => undefined);
    if (!stat) continue;
    const silentMs = Date.now() - stat.mtimeMs;
    parts.push({
      file,
      bytes: stat.size,
      silentMs,
      pid: host === HOST ? Number(pid) : undefined,
      hasOwner: pid !== undefined,
    });
  }
  return parts.sort((a, b) => b.bytes - a.bytes);
}

function isTaken({ hasOwner, silentMs, pid }: Found): boolean {
  if (!hasOwner) return false;
  return silentMs < (pid !== undefined && !isRunning(pid) ? SILENCE_OF_ENDED_MS : SILENCE_MS);
}

function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    // It is another user's process.
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** Renames a part that nobody owns; false if another process was faster. */
async function take(file: string, own: string): Promise<boolean> {
  // First, so that the new owner does not look gone.
  await touch(file);
  return fs.rename(file, own).then(
    () => true,
    () => false,
  );
}

async function create(own: string): Promise<boolean> {
  const handle = await fs.open(own, "wx");
  await handle.close();
  return true;
}

async function touch(file: string): Promise<void> {
  const now = new Date();
  await fs.utimes(file, now, now).catch(() => {});
}

async function exists(file: string): Promise<boolean> {
  return fs.stat(file).then(
    () => true,
    () => false,
  );
}
