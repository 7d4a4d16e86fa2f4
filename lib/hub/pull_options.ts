import { boolean, callback, checkOptions, nonEmpty, path, type Rule, signal } from "../option_rules.js";

/** Options of {@link pull}; all are optional. */
export interface PullOptions {
  /** Branch, tag or commit. Default: what follows `@` in the name, else a known model's pinned commit, else `"main"`. */
  revision?: string;
  /** Default: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else `huggingface/hub` in `XDG_CACHE_HOME` or `~/.cache`. */
  cacheFolder?: string;
  /** Default: `HF_ENDPOINT`, else `https://huggingface.co`. */
  endpoint?: string;
  /** For private and gated models; sent to the endpoint only. Default: `HF_TOKEN`, else the file that `hf auth login` writes. */
  token?: string | false;
  /** Use the cache only. Default: `HF_HUB_OFFLINE`. */
  offline?: boolean;
  /** Also download the repository's ONNX graph, which the JavaScript fallback needs. Default false. */
  onnx?: boolean;
  /**
   * Also check the hashes of files that are already in the cache, and download those again that differ. Default false:
   * files of the right size are taken as they are, since each was checked when it was downloaded.
   */
  verify?: boolean;
  /** Stops with an `AbortError`. What has been downloaded is kept for the next time. */
  signal?: AbortSignal;
  /** Called from time to time while files are downloaded or verified. An error that it throws ends the call. */
  onProgress?: (progress: PullProgress) => void;
}

/** How far a download has come. */
export interface PullProgress {
  /** The file that is being downloaded or verified. */
  file: string;
  /** Set while the file is being verified. */
  isVerification?: true;
  /** Bytes of the model's files that are present, including earlier downloads; with `verify`, that are correct. */
  done: number;
  /** Bytes of all files of the model. */
  total: number;
}

const RULES: Record<keyof PullOptions, Rule> = {
  revision: nonEmpty("a branch, tag or commit"),
  cacheFolder: path,
  endpoint: nonEmpty("a URL"),
  token: { expected: "a string or false", accepts: (value) => typeof value === "string" || value === false },
  offline: boolean,
  onnx: boolean,
  verify: boolean,
  signal,
  onProgress: callback,
};

/** @throws EmbedderError `INVALID_ARGUMENT`, as `checkOptions`. */
export function checkPullOptions(options: unknown): PullOptions {
  return checkOptions<PullOptions>(options, RULES);
}
