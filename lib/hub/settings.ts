import { readFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { EmbedderError } from "../errors.js";
import { invalid } from "../option_rules.js";

/** Settings from the Hub's environment variables and the options of a call. */
export interface HubSettings {
  cacheFolder: string;
  /** Without a slash at its end. */
  endpoint: string;
  token: string | undefined;
  offline: boolean;
  /** How long a connection may send nothing. */
  stallTimeoutMs: number;
  /** Whether snapshots may link to their blobs. */
  symlinks: boolean;
}

const DEFAULT_ENDPOINT = "https://huggingface.co";
const DEFAULT_STALL_TIMEOUT_S = 30;

/**
 * The variables are those of Python's `huggingface_hub`, read in the same way, so that both use one cache.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` for an endpoint that is not a URL, or a token that is not valid in a header.
 */
export function hubSettings(
  options: { cacheFolder?: string; endpoint?: string; token?: string | false; offline?: boolean },
  env: NodeJS.ProcessEnv = process.env,
): HubSettings {
  const userCache = env.XDG_CACHE_HOME || path.join(homeFolder(), ".cache");
  const home = expanded(env.HF_HOME || path.join(userCache, "huggingface"), env);
  const cacheFolder = options.cacheFolder || env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE || path.join(home, "hub");
  const seconds = Number(env.HF_HUB_DOWNLOAD_TIMEOUT);
  return {
    cacheFolder: path.resolve(expanded(cacheFolder, env)),
    endpoint: checkEndpoint(options.endpoint || env.HF_ENDPOINT || DEFAULT_ENDPOINT),
    token: checkToken(options.token === undefined ? tokenOf(home, env) : options.token || undefined),
    offline: options.offline ?? (isTrue(env.HF_HUB_OFFLINE) || isTrue(env.TRANSFORMERS_OFFLINE)),
    stallTimeoutMs: (seconds > 0 ? seconds : DEFAULT_STALL_TIMEOUT_S) * 1000,
    symlinks: !isTrue(env.HF_HUB_DISABLE_SYMLINKS),
  };
}

function tokenOf(home: string, env: NodeJS.ProcessEnv): string | undefined {
  if (isTrue(env.HF_HUB_DISABLE_IMPLICIT_TOKEN)) return undefined;
  const named = env.HF_TOKEN || env.HUGGING_FACE_HUB_TOKEN;
  if (named) return named;
  try {
    return readFileSync(expanded(env.HF_TOKEN_PATH || path.join(home, "token"), env), "utf8");
  } catch {
    return undefined;
  }
}

function checkToken(token: string | undefined): string | undefined {
  const trimmed = token?.trim();
  if (!trimmed) return undefined;
  if (/^[\x21-\x7e]+$/.test(trimmed)) return trimmed;
  // The value is a secret, even a wrong one.
  throw new EmbedderError("INVALID_ARGUMENT", "the Hub's token: expected printable characters without spaces");
}

function checkEndpoint(endpoint: string): string {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : undefined;
  if (url && /^https?:$/.test(url.protocol) && !url.search && !url.hash) return endpoint.replace(/\/+$/, "");
  throw invalid("the Hub's endpoint", "an http or https URL", endpoint);
}

/** Expands `~` and `$NAME` in a path, like Python's `expanduser` and `expandvars`. */
function expanded(folder: string, env: NodeJS.ProcessEnv): string {
  const named = folder.replace(/\$(?:(\w+)|\{(\w+)\})/g, (found, plain, braced) => env[plain ?? braced] ?? found);
  return named.replace(/^~(?=$|[\\/])/, () => homeFolder());
}

function homeFolder(): string {
  try {
    return os.homedir();
  } catch (cause) {
    // In a container, the user may have no name and HOME may be unset.
    throw new EmbedderError("INVALID_ARGUMENT", "the user has no home folder: set HOME or HF_HOME", { cause });
  }
}

function isTrue(value: string | undefined): boolean {
  return ["1", "ON", "YES", "TRUE"].includes(value?.toUpperCase() ?? "");
}
