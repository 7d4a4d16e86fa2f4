import { setMaxListeners } from "node:events";
import { AbortError } from "./errors.js";

/** Calls `callback` once the signal is aborted, unless the returned function was called before. */
export function onAbort(signal: AbortSignal | undefined, callback: () => void): () => void {
  if (!signal) return () => {};
  // Any number of calls may wait for one signal: Node.js would warn of a leak if there are more than ten.
  setMaxListeners(0, signal);
  // A new function: two calls may wait with the same one.
  const listener = () => callback();
  signal.addEventListener("abort", listener, { once: true });
  return () => signal.removeEventListener("abort", listener);
}

/** The promise, or an `AbortError` as soon as the signal is aborted. */
export function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const stopWaiting = onAbort(signal, () => reject(new AbortError(signal)));
    promise.finally(stopWaiting).then(resolve, reject);
  });
}
