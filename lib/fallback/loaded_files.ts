import { type BigIntStats, fstatSync, statSync } from "node:fs";
import { EmbedderError } from "../errors.js";
import { openRegularFile } from "../regular_file.js";

interface LoadedFile {
  path: string;
  descriptor: number;
  before: BigIntStats;
}

/**
 * Files that a model is loaded from. ONNX Runtime maps weights into memory: what is written into such a file later changes
 * the vectors. A file that another is renamed over stays what it was for those who have it open.
 */
export class LoadedFiles {
  readonly #files: readonly LoadedFile[];

  /**
   * Opens them, for as long as the process lives.
   *
   * @throws EmbedderError as `openRegularFile`.
   */
  constructor(paths: readonly string[]) {
    this.#files = paths.map((path) => {
      const descriptor = openRegularFile(path);
      return { path, descriptor, before: fstatSync(descriptor, { bigint: true }) };
    });
  }

  /** @throws EmbedderError `MODEL_INVALID` if somebody has written into one. */
  checkContents(): void {
    for (const { path, descriptor, before } of this.#files) {
      const now = fstatSync(descriptor, { bigint: true });
      // Not ctime: a new name, or the loss of one, leaves the contents alone.
      if (now.size !== before.size || now.mtimeNs !== before.mtimeNs) throw changed(path);
    }
  }

  /**
   * For what was read by name after this was made.
   *
   * @throws EmbedderError `MODEL_INVALID` if a name has come to mean another file, or its contents have changed.
   */
  checkNames(): void {
    for (const { path, before } of this.#files) {
      const now = statSync(path, { bigint: true, throwIfNoEntry: false });
      if (now?.dev !== before.dev || now.ino !== before.ino) throw changed(path);
    }
    this.checkContents();
  }
}

function changed(path: string): EmbedderError {
  return new EmbedderError(
    "MODEL_INVALID",
    `${path} has changed since the model was loaded from it: load the model again`,
  );
}
