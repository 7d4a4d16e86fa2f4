import { EXIT_CODES, Failure } from "./failure.mjs";

/**
 * An `AbortSignal` for Ctrl-C and SIGTERM, with the signal's name as its reason. A second one ends the process at once,
 * which does no harm either.
 */
export function interruptionSignal() {
  const controller = new AbortController();
  for (const name of /** @type {const} */ (["SIGINT", "SIGTERM"])) {
    // Once: without a listener, the second one has the default effect.
    process.once(name, () => controller.abort(new Interruption(name)));
  }
  return controller.signal;
}

class Interruption extends Failure {
  /** @param {"SIGINT" | "SIGTERM"} name */
  constructor(name) {
    super("INTERRUPTED", `interrupted by ${name}`, EXIT_CODES[name]);
  }
}
