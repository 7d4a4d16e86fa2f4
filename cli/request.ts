/** What the requests to `serve` have in common: their errors, and the checks of what every body has. */

import { describeValue } from "../lib/errors.js";

/** An error as an answer. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly param: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    code: string,
    message: string,
    details: { param?: string; headers?: Record<string, string> } = {},
  ) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = details.param ?? null;
    this.headers = { ...(RETRIED.includes(status) && { "retry-after": "1" }), ...details.headers };
  }

  /** As OpenAI's. */
  toJSON(): object {
    const { message, code, param } = this;
    return { error: { message, type: ERROR_TYPES[this.status] ?? "invalid_request_error", param, code } };
  }
}

/** With these, the same request may be sent again. */
const RETRIED = [429, 503];

const ERROR_TYPES: Record<number, string> = { 429: "rate_limit_error", 500: "server_error", 503: "server_error" };

/**
 * The fields of a body.
 *
 * @param known Their names.
 * @param needed Names the necessary ones in errors.
 * @throws ApiError 400
 */
export function fieldsOf(body: unknown, known: readonly string[], needed: string): Record<string, unknown> {
  if (typeof body !== "object" || body === null || Array.isArray(body)) {
    throw new ApiError(400, "invalid_value", `the body must be a JSON object with ${needed}`);
  }
  const unknown = Object.keys(body).find((name) => !known.includes(name));
  if (unknown === undefined) return body as Record<string, unknown>;
  const message = `unknown field ${JSON.stringify(unknown)} (known: ${known.join(", ")})`;
  throw new ApiError(400, "unknown_parameter", message, { param: unknown });
}

/**
 * @param served The names of the model.
 * @returns The one that was given.
 * @throws ApiError 400, 404
 */
export function checkModel(model: unknown, served: readonly string[]): string {
  const names = served.map((name) => JSON.stringify(name)).join(" and ");
  if (typeof model !== "string" || model === "") throw expected("model", `the name of the model, ${names}`, model);
  if (served.includes(model)) return model;
  const message = `the model ${JSON.stringify(model)} is not served here; this server has ${names}`;
  throw new ApiError(404, "model_not_found", message, { param: "model" });
}

/** @throws ApiError 413 */
export function checkBatch(field: string, texts: number, maxBatch: number): void {
  if (texts <= maxBatch) return;
  const message = `${field}: ${texts} texts in one request; this server takes ${maxBatch} (--max-batch)`;
  throw new ApiError(413, "batch_too_large", message, { param: field });
}

/** The error for a value other than what was expected. */
export function expected(what: string, expectation: string, found: unknown, param = what): ApiError {
  const message = `${what}: expected ${expectation}, found ${describeValue(found)}`;
  return new ApiError(400, "invalid_value", message, { param });
}
