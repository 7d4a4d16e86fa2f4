/** Checks options objects: which names are known, and what each value has to be. */

import { callersCode, describeValue, EmbedderError, toEmbedderError } from "./errors.js";

/** What the value of an option has to be. */
export interface Rule {
  expected: string;
  accepts(value: unknown): boolean;
}

export const string: Rule = { expected: "a string", accepts: (value) => typeof value === "string" };
export const boolean: Rule = { expected: "true or false", accepts: (value) => typeof value === "boolean" };
export const callback: Rule = { expected: "a function", accepts: (value) => typeof value === "function" };
export const signal: Rule = { expected: "an AbortSignal", accepts: isAbortSignal };
export const path: Rule = {
  expected: "a path",
  accepts: (value) => typeof value === "string" && value !== "" && !value.includes("\0"),
};

export const nonEmpty = (expected: string): Rule => ({
  expected,
  accepts: (value) => typeof value === "string" && value !== "",
});

export const oneOf = (...names: readonly string[]): Rule => ({
  expected: `one of ${names.map((name) => JSON.stringify(name)).join(", ")}`,
  accepts: (value) => names.includes(value as string),
});

/** @param most The addon takes 32 bits. */
export const atLeast = (least: number, most = 0x7fffffff): Rule => ({
  expected: `a whole number of at least ${least}`,
  accepts: (value) => Number.isInteger(value) && (value as number) >= least && (value as number) <= most,
});

/** `instanceof` would also accept anything that has the prototype, such as a proxy, and both throw when they are used. */
function isAbortSignal(value: unknown): boolean {
  try {
    return typeof Reflect.get(AbortSignal.prototype, "aborted", value) === "boolean";
  } catch {
    return false;
  }
}

/**
 * A checked copy of an options object without its `undefined` values.
 *
 * @param rules One for each option there is.
 * @throws EmbedderError `INVALID_ARGUMENT` for an unknown name or a value of the wrong kind.
 */
export function checkOptions<T extends object>(options: unknown, rules: Readonly<Record<keyof T, Rule>>): T {
  const entries = readArgument("options", () => entriesOf(options, Object.keys(rules)));
  const checked = entries.map(([name, value]) => {
    const rule = rules[name as keyof T];
    if (!rule.accepts(value)) throw invalid(`option ${name}`, rule.expected, value);
    return [name, rule === callback ? rethrowing(value as (argument: unknown) => void) : value];
  });
  return Object.fromEntries(checked);
}

/** A callback whose errors leave this package unchanged. */
function rethrowing(call: (argument: unknown) => void): (argument: unknown) => void {
  return (argument) => callersCode(() => call(argument));
}

/**
 * Reads an argument, which may be a proxy or have getters: whatever those throw is an error in the argument.
 *
 * @throws EmbedderError `INVALID_ARGUMENT`
 */
export function readArgument<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof EmbedderError) throw error;
    const message = `${what}: cannot be read: ${toEmbedderError(error).message}`;
    throw new EmbedderError("INVALID_ARGUMENT", message, { cause: error });
  }
}

function entriesOf(options: unknown, names: readonly string[]): [string, unknown][] {
  if (options === undefined) return [];
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    throw invalid("options", `an object with ${names.join(", ")}`, options);
  }
  for (const name of Object.keys(options)) {
    if (names.includes(name)) continue;
    const hint = nearest(name, names);
    const message = `unknown option ${JSON.stringify(name)}${hint ? `; did you mean ${JSON.stringify(hint)}?` : ""} (known: ${names.join(", ")})`;
    throw new EmbedderError("INVALID_ARGUMENT", message);
  }
  return Object.entries(options).filter(([, value]) => value !== undefined);
}

export function invalid(what: string, expected: string, found: unknown): EmbedderError {
  return new EmbedderError("INVALID_ARGUMENT", `${what}: expected ${expected}, found ${describeValue(found)}`);
}

/** The name that was most likely meant by a misspelt one; `undefined` if none is close. */
function nearest(name: string, names: readonly string[]): string | undefined {
  const distanceTo = (candidate: string) => editDistance(name.toLowerCase(), candidate.toLowerCase());
  const [best] = names.toSorted((a, b) => distanceTo(a) - distanceTo(b));
  return best !== undefined && distanceTo(best) <= Math.max(2, best.length / 3) ? best : undefined;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let i = 0; i < a.length; i++) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j++) {
      const substitution = (row[j] ?? 0) + (a[i] === b[j] ? 0 : 1);
      next.push(Math.min(substitution, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
