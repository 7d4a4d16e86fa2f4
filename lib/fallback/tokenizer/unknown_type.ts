import { EmbedderError } from "../../errors.js";

/** The error for a part of `tokenizer.json` that is not known here. `ofAddon` are the types that the addon knows. */
export function unknownType(key: string, type: unknown, ofAddon: readonly string[]): Error {
  if (!ofAddon.includes(type as string))
    return new Error(`${key}: expected a known one, found ${JSON.stringify(type)}`);
  return unsupported(`${key}: ${type}`);
}

export function unsupported(what: string): EmbedderError {
  return new EmbedderError("MODEL_UNSUPPORTED", `${what} is not supported by the JavaScript fallback`);
}
