import { type FileHandle, open, realpath, rename, rm, stat } from "node:fs/promises";
import * as path from "node:path";
import { CommandLineError, fileError } from "./failure.js";

/** How much is written at once, so that short records do not cost a system call each. */
const BUFFER_BYTES = 1 << 18;

/** A file that appears under its name only when it is complete: it is written under another name and renamed. */
export class WholeFile {
  readonly #target: string;
  readonly #partial: string;
  readonly #file: FileHandle;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #written = 0;

  private constructor(target: string, partial: string, file: FileHandle) {
    this.#target = target;
    this.#partial = partial;
    this.#file = file;
  }

  static async create(name: string): Promise<WholeFile> {
    const existing = await stat(name).catch(() => undefined);
    if (existing && !existing.isFile()) {
      // Renaming would replace a device or a pipe.
      const message = `${name} exists and is not a file; without --output, stdout is used`;
      throw new CommandLineError("INVALID_OUTPUT", message);
    }
    // A link stays a link: its target is replaced.
    const target = existing ? await realpath(name) : path.resolve(name);
    const partial = path.join(path.dirname(target), `.${path.basename(target)}.${process.pid}.part`);
    const file = await open(partial, "w").catch((error) => {
      throw fileError(`cannot write ${name}`, error);
    });
    return new WholeFile(target, partial, file);
  }

  /** Appends. The bytes are copied: the caller may reuse them. */
  async append(bytes: Uint8Array): Promise<void> {
    this.#pending.push(Buffer.from(bytes));
    this.#pendingBytes += bytes.length;
    if (this.#pendingBytes >= BUFFER_BYTES) await this.#flush();
  }

  /** Overwrites the first bytes, which have been appended before. */
  async patchStart(bytes: Uint8Array): Promise<void> {
    await this.#flush();
    await this.#writeAll(bytes, 0);
  }

  /** Gives the file its name. */
  async complete(): Promise<void> {
    await this.#flush();
    await this.#named(async () => {
      // Before renaming: a crash of the machine must not leave an empty file under the final name.
      await this.#file.sync();
      await this.#file.close();
      await rename(this.#partial, this.#target);
    });
  }

  /** Removes what was written. */
  async discard(): Promise<void> {
    this.#pending = [];
    await this.#file.close().catch(() => {});
    await rm(this.#partial, { force: true });
  }

  async #flush(): Promise<void> {
    const bytes = Buffer.concat(this.#pending);
    this.#pending = [];
    this.#pendingBytes = 0;
    await this.#writeAll(bytes, this.#written);
    this.#written += bytes.length;
  }

  async #writeAll(bytes: Uint8Array, position: number): Promise<void> {
    await this.#named(async () => {
      for (let done = 0; done < bytes.length; ) {
        done += (await this.#file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
      }
    });
  }

  /** @throws CommandLineError which names the file. */
  async #named(work: () => Promise<void>): Promise<void> {
    await work().catch((error) => {
      throw fileError(`cannot write ${this.#target}`, error);
    });
  }
}
