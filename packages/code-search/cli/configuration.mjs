/** Which model computes on which device, and how many results there are: what options, variables and files say. */

import { existsSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { foldersAbove, readRegularFile } from "../lib/files.mjs";
import { Failure } from "./failure.mjs";
import { isInside } from "./locations.mjs";

export const DEVICES = /** @type {const} */ (["auto", "cpu", "gpu"]);
export const MAX_LIMIT = 1000;
const DEFAULTS = { device: /** @type {const} */ ("auto"), limit: 10 };
const FILE = "code-search.json";

/** @typedef {(typeof DEVICES)[number]} Device */
/** @typedef {{ model?: string, device?: Device, limit?: number }} Settings */
/**
 * A model as somebody named it. One that a file in the searched folder names is used only if it is there: a folder that
 * was cloned must not decide what is downloaded.
 *
 * @typedef {{ name: string, namedBy?: string, isDownloaded?: true }} NamedModel `namedBy`: the file
 */

/** @type {Record<keyof Settings, { expected: string, accepts: (value: unknown) => boolean }>} */
const RULES = {
  model: { expected: "a folder or a name on the Hub", accepts: (value) => typeof value === "string" && value !== "" },
  device: {
    expected: `one of ${DEVICES.join(", ")}`,
    accepts: (value) => DEVICES.includes(/** @type {Device} */ (value)),
  },
  limit: { expected: `a whole number from 1 to ${MAX_LIMIT}`, accepts: isLimit },
};

/** @param {unknown} value */
export function isLimit(value) {
  return Number.isInteger(value) && Number(value) >= 1 && Number(value) <= MAX_LIMIT;
}

/**
 * The settings for a folder: an option, else an environment variable, else the file of the folder, else that of the user.
 *
 * @param {string} folder absolute
 * @param {Settings} options
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Promise<{ model: NamedModel | undefined, device: Device, limit: number }>}
 */
export async function settingsFor(folder, options, env = process.env) {
  const ofFolder = [folder, ...foldersAbove(folder).reverse()]
    .map((parent) => path.join(parent, FILE))
    .find(existsSync);
  const ofUser = userFile(env);
  const inFolder = ofFolder ? await settingsIn(ofFolder) : {};
  const inUsersFile = existsSync(ofUser) ? await settingsIn(ofUser, { followLinks: true }) : {};
  const all = [options, settingsOf(env), inFolder, inUsersFile];
  const [device = DEFAULTS.device] = all.flatMap((settings) => settings.device ?? []);
  const [limit = DEFAULTS.limit] = all.flatMap((settings) => settings.limit ?? []);
  const named = all.find((settings) => settings.model !== undefined);
  const name = named?.model;
  if (name === undefined) return { model: undefined, device, limit };
  if (ofFolder && named === inFolder) return { model: modelOfFolder(name, ofFolder), device, limit };
  if (named === inUsersFile) return { model: { name: modelOfUser(name, ofUser), namedBy: ofUser }, device, limit };
  return { model: { name }, device, limit };
}

/** @param {NodeJS.ProcessEnv} env */
function userFile({ APPDATA, XDG_CONFIG_HOME }) {
  const home =
    (process.platform === "win32" && APPDATA) ||
    // A relative one is to be ignored, by the specification.
    (XDG_CONFIG_HOME && path.isAbsolute(XDG_CONFIG_HOME) && XDG_CONFIG_HOME) ||
    path.join(os.homedir(), ".config");
  return path.join(home, "semantic-search-native", FILE);
}

/**
 * @param {NodeJS.ProcessEnv} env
 * @returns {Settings}
 */
function settingsOf({ SEMANTIC_SEARCH_MODEL: model, SEMANTIC_SEARCH_DEVICE: device }) {
  return {
    ...(model && { model }),
    ...(device && checked({ device }, "the environment variable SEMANTIC_SEARCH_DEVICE", () => "")),
  };
}

/**
 * @param {string} file
 * @param {{ followLinks?: boolean }} [options] a user's file may be one
 * @returns {Promise<Settings>}
 */
async function settingsIn(file, options) {
  let settings;
  try {
    settings = JSON.parse(`${await readRegularFile(file, options)}`);
  } catch (error) {
    throw invalid(`${file}: ${/** @type {Error} */ (error).message}`);
  }
  if (typeof settings !== "object" || settings === null || Array.isArray(settings)) {
    throw invalid(`${file}: expected an object such as { "limit": 20 }`);
  }
  return checked(settings, file, (key) => `: ${key}`);
}

/**
 * @param {Record<string, unknown>} settings
 * @param {string} source
 * @param {(key: string) => string} part how a setting is named in an error, behind its source
 * @returns {Settings}
 */
function checked(settings, source, part) {
  for (const [key, value] of Object.entries(settings)) {
    const rule = Object.hasOwn(RULES, key) ? RULES[/** @type {keyof Settings} */ (key)] : undefined;
    if (!rule) throw invalid(`${source}: unknown key ${JSON.stringify(key)} (known: ${Object.keys(RULES).join(", ")})`);
    if (!rule.accepts(value)) {
      throw invalid(`${source}${part(key)}: expected ${rule.expected}, found ${JSON.stringify(value)}`);
    }
  }
  return settings;
}

/** @param {string} message */
function invalid(message) {
  return new Failure("INVALID_CONFIGURATION", message);
}

/**
 * A model folder must lie beside the file or below it: looking at another place can mean a network share.
 *
 * @param {string} name
 * @param {string} file
 * @returns {NamedModel}
 */
function modelOfFolder(name, file) {
  const folder = path.resolve(path.dirname(file), name);
  const isFolder = isInside(path.dirname(file), folder) && existsSync(folder);
  return isFolder ? { name: folder, namedBy: file } : { name, namedBy: file, isDownloaded: true };
}

/**
 * @param {string} name
 * @param {string} file
 */
function modelOfUser(name, file) {
  const folder = path.resolve(
    path.dirname(file),
    name.replace(/^~(?=[\\/])/, () => os.homedir()),
  );
  return existsSync(folder) ? folder : name;
}
