import { Interruption } from "./failure.js";

/** A signal that Ctrl-C and SIGTERM abort, with an `Interruption` as its reason. A second one ends the process at once. */
export function interruptionSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    // Once: without a listener, the system's own way of ending a process is back.
    process.once(name, () => controller.abort(new Interruption(name)));
  }
  return controller.signal;
}
