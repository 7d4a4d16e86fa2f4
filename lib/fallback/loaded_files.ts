import { type BigIntStats, fstatSync, statSync } from "node:fs";
import { EmbedderError } from "../errors.js";
import { openRegularFile } from "../regular_file.js";

interface LoadedFile {
  path: string;
  descriptor: number;
  before: BigIntStats;
}

/**
 * The files of a loaded model. ONNX Runtime maps weights into memory: writing into such a file later changes the vectors.
 * Replacing it by renaming another does not: an open file keeps its contents.
 */
export class LoadedFiles {
  readonly #files: readonly LoadedFile[];

  /**
   * Opens them for the lifetime of the process.
   *
   * @throws EmbedderError as `openRegularFile`.
   */
  constructor(paths: readonly string[]) {
    this.#files = paths.map((path) => {
      const descriptor = openRegularFile(path);
      return { path, descriptor, before: fstatSync(descriptor, { bigint: true }) };
    });
  }

  /** @throws EmbedderError `MODEL_INVALID` if one has been written to. */
  checkContents(): void {
    for (const { path, descriptor, before } of this.#files) {
      const now = fstatSync(descriptor, { bigint: true });
      // Not ctime: adding or removing a name does not change the contents.
      if (now.size !== before.size || now.mtimeNs !== before.mtimeNs) throw changed(path);
    }
  }

  /**
   * Checks files that were read by name after they were opened here.
   *
   * @throws EmbedderError `MODEL_INVALID` if a name now means another file, or its contents have changed.
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
  const message = `${path} has changed since the model was loaded from it: load the model again`;
  return new EmbedderError("MODEL_INVALID", message);
}
