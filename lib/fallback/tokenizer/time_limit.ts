import { createContext, Script } from "node:vm";

const context = createContext({ work: undefined });
const script = new Script("work()");

/**
 * Runs synchronous work, and stops it if it takes too much processor time, even within a regular expression: V8 can do
 * that for a script. If other work kept the processor busy meanwhile, the work is restarted with a longer limit.
 *
 * @param work Something that can be restarted.
 * @throws what `work` throws, or an error that names the limit.
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
        const message = `not done after ${timeout / 1000} s; the tokenizer or one of its regular expressions may never finish`;
        throw new Error(message, { cause: error });
      }
    }
  } finally {
    context.work = undefined;
  }
}
