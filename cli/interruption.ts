import { Interruption } from "./failure.js";

/** An `AbortSignal` for Ctrl-C and SIGTERM, with an `Interruption` as its reason. A second one ends the process at once. */
export function interruptionSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    // Once: without a listener, the second one has the default effect.
    process.once(name, () => controller.abort(new Interruption(name)));
  }
  return controller.signal;
}
