import { EmbedderError } from "../../errors.js";
import { isObject, type JsonObject } from "../../json_file.js";
import { unknownType } from "./unknown_type.js";

/** The ids that a post-processor puts before and after a text. */
export function specialIds(postProcessor: JsonObject | null | undefined): [before: number[], after: number[]] {
  if (!postProcessor) return [[], []];
  const { type, processors, cls, sep } = postProcessor as {
    type: string;
    processors: JsonObject[];
    cls: [string, number];
    sep: [string, number];
  };
  if (type === "TemplateProcessing") return templateIds(postProcessor);
  if (type === "BertProcessing" || type === "RobertaProcessing") return [[cls[1]], [sep[1]]];
  if (type === "ByteLevel") return [[], []];
  if (type !== "Sequence") throw unknownType("post_processor.type", type, []);
  const all = processors.map(specialIds);
  return [all.flatMap(([before]) => before).reverse(), all.flatMap(([, after]) => after)];
}

function templateIds(template: JsonObject): [before: number[], after: number[]] {
  const { single, special_tokens: tokens } = template as {
    single: { Sequence?: object; SpecialToken?: { id: string } }[];
    special_tokens: { [name: string]: { ids: number[] } };
  };
  if (!Object.values(tokens).every(({ ids }) => Array.isArray(ids) && ids.every(isCount))) {
    throw new Error("post_processor.special_tokens: expected the ids of each");
  }
  const text = single.findIndex(({ Sequence: sequence }) => sequence);
  const ids = single.map(({ SpecialToken: token }) => {
    if (!token) return [];
    const special = tokens[token.id];
    if (special) return special.ids;
    throw new Error(`the template's token ${JSON.stringify(token.id)} is missing in special_tokens`);
  });
  return [ids.slice(0, text).flat(), ids.slice(text + 1).flat()];
}

/** A part of a pair with the type of its tokens: special tokens, or one of the texts. */
export type PairPart = { type: number } & (
  | { ids: readonly number[]; sequence?: undefined }
  | { ids?: undefined; sequence: "A" | "B" }
);

/**
 * How a post-processor joins two texts.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` or `MODEL_INVALID`
 */
export function pairTemplate(file: string, postProcessor: unknown): PairPart[] {
  const invalid = (problem: string) => new EmbedderError("MODEL_INVALID", `${file}: ${problem}`);
  const processor = isObject(postProcessor) ? postProcessor : {};
  const parts = pairParts(processor, invalid);
  if (!parts) {
    const message = `${file}: post_processor ${JSON.stringify(processor.type)} for pairs of texts is not supported; supported are TemplateProcessing, BertProcessing and RobertaProcessing`;
    throw new EmbedderError("MODEL_UNSUPPORTED", message);
  }
  const types = parts.map((part) => part.type);
  if (types.every((own, index) => (own === 0 || own === 1) && own >= (types[index - 1] ?? 0))) return parts;
  throw invalid(`expected token types 0 and then 1 for a pair of texts, found ${JSON.stringify(types)}`);
}

function pairParts(
  { type, ...settings }: JsonObject,
  invalid: (problem: string) => EmbedderError,
): PairPart[] | undefined {
  const first: PairPart = { sequence: "A", type: 0 };
  if (type === undefined) return [first, { sequence: "B", type: 1 }];
  if (type === "BertProcessing" || type === "RobertaProcessing") {
    // Each is a token and its id.
    const [cls, sep] = [settings.cls, settings.sep].map((token) => (Array.isArray(token) ? token[1] : undefined));
    if (!isCount(cls) || !isCount(sep)) throw invalid("post_processor: expected the ids of cls and sep");
    const isBert = type === "BertProcessing";
    const ofSecond = isBert ? 1 : 0;
    return [
      { ids: [cls], type: 0 },
      first,
      { ids: isBert ? [sep] : [sep, sep], type: 0 },
      { sequence: "B", type: ofSecond },
      { ids: [sep], type: ofSecond },
    ];
  }
  if (type !== "TemplateProcessing") return undefined;
  const { pair, special_tokens: tokens } = settings as {
    pair: { Sequence?: { id: "A" | "B"; type_id: number }; SpecialToken?: { id: string; type_id: number } }[];
    special_tokens: { [name: string]: { ids: number[] } };
  };
  return pair.map(({ Sequence: sequence, SpecialToken: token }): PairPart => {
    if (sequence) return { sequence: sequence.id, type: sequence.type_id };
    const ids = token && tokens[token.id]?.ids;
    if (ids) return { ids, type: token.type_id };
    throw invalid(`the template's token ${JSON.stringify(token?.id)} is missing in special_tokens`);
  });
}

/** Whether a value is a whole number of at least 0. */
export function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
