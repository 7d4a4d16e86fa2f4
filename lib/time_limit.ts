import { createContext, Script } from "node:vm";

const context = createContext({ work: undefined });
const script = new Script("work()");

/**
 * Does synchronous work, and ends it when it takes too long, in the middle of a regular expression too: V8 can do that
 * for a script.
 *
 * @throws what `work` throws, or an error that tells the limit.
 */
export function withinTimeLimit<T>(limitMs: number, work: () => T): T {
  context.work = work;
  try {
    return script.runInContext(context, { timeout: limitMs, displayErrors: false }) as T;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw error;
    throw new Error(`not done after ${limitMs / 1000} s; the tokenizer, or a regular expression of it, may never be`, {
      cause: error,
    });
  } finally {
    context.work = undefined;
  }
}
