import { createContext, Script } from "node:vm";

const context = createContext({ work: undefined });
const script = new Script("work()");

/**
 * Does synchronous work, and ends it when it takes too much of the processor's time, in the middle of a regular expression
 * too: V8 can do that for a script. Where the processor was at others' work meanwhile, the work begins anew with a
 * longer limit.
 *
 * @param work What may be begun anew.
 * @throws what `work` throws, or an error that tells the limit.
 */
export function withinTimeLimit<T>(limitMs: number, work: () => T): T {
  context.work = work;
  try {
    for (let timeout = limitMs; ; timeout *= 2) {
      const before = process.cpuUsage();
      try {
        return script.runInContext(context, { timeout, displayErrors: false }) as T;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw error;
        const { user, system } = process.cpuUsage(before);
        if ((user + system) / 1000 < limitMs / 2) continue;
        const cause = { cause: error };
        throw new Error(
          `not done after ${timeout / 1000} s; the tokenizer, or a regular expression of it, may never be`,
          cause,
        );
      }
    }
  } finally {
    context.work = undefined;
  }
}
