import type { JsonObject } from "../../json_file.js";
import { patternOf } from "./pattern.js";
import { precompiledNormalizer } from "./precompiled.js";
import { MARK, NONSPACING_MARK, OTHER, unicodeForm } from "./unicode.js";
import { unknownType } from "./unknown_type.js";

export type Normalizer = (text: string) => string;

/**
 * The normalizer of a `tokenizer.json`, as the addon's tokenizer computes it.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` for a type that is not known here; `Error` for a malformed one.
 */
export function normalizerOf(config: JsonObject | null | undefined): Normalizer {
  if (!config) return (text) => text;
  switch (config.type) {
    case "Sequence": {
      const steps = (config.normalizers as JsonObject[]).map(normalizerOf);
      return (text) => steps.reduce((result, normalize) => normalize(result), text);
    }
    case "BertNormalizer":
      return bertNormalizer(config);
    case "Precompiled":
      return precompiledNormalizer(config.precompiled_charsmap);
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD": {
      const form = config.type;
      return (text) => unicodeForm(text, form);
    }
    case "StripAccents":
      return (text) => text.replace(MARK, "");
    case "Lowercase":
      return lowerCase;
    case "Strip":
      return (text) => {
        const rest = config.strip_left ? text.replace(/^\p{White_Space}+/u, "") : text;
        return config.strip_right ? rest.replace(/(?<!\p{White_Space})\p{White_Space}+$/u, "") : rest;
      };
    case "Prepend":
      return (text) => (text === "" ? "" : `${config.prepend}${text}`);
    case "Replace": {
      const pattern = patternOf(config.pattern);
      return (text) =>
        pattern
          .split(text, "Isolated")
          .map((part) => (part.isMatch ? config.content : part.text))
          .join("");
    }
    default:
      throw unknownType("normalizer.type", config.type, ["ByteLevel", "Nmt"]);
  }
}

/** Character by character: a capital sigma at the end of a word becomes σ, too. */
function lowerCase(text: string): string {
  return text.replaceAll("Σ", "σ").toLowerCase();
}

function bertNormalizer(config: JsonObject): Normalizer {
  for (const key of ["clean_text", "handle_chinese_chars", "lowercase"]) {
    if (typeof config[key] !== "boolean") throw new Error(`normalizer.${key}: expected true or false`);
  }
  const stripAccents = config.strip_accents ?? config.lowercase;
  return (text) => {
    let result = text;
    if (config.clean_text) {
      result = result
        .replace(/[\t\n\r]/g, " ")
        .replaceAll("\ufffd", "")
        .replace(OTHER, "");
      result = result.replace(/\p{White_Space}/gu, " ");
    }
    if (config.handle_chinese_chars) {
      result = result.replace(
        /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu,
        " $& ",
      );
    }
    if (stripAccents) result = unicodeForm(result, "NFD").replace(NONSPACING_MARK, "");
    return config.lowercase ? lowerCase(result) : result;
  };
}
