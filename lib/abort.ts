import { AbortError } from "./errors.js";

/** What to call when a signal is aborted. */
const waiting = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls `callback` once the signal is aborted, unless the returned function was called before. A signal gets one listener
 * from this package, however many calls wait for it: Node.js warns of a leak if there are more than ten.
 */
export function onAbort(signal: AbortSignal | undefined, callback: () => void): () => void {
  if (!signal) return () => {};
  const callbacks = waiting.get(signal) ?? listen(signal);
  // A new function: two calls may wait with the same one.
  const entry = () => callback();
  callbacks.add(entry);
  return () => {
    callbacks.delete(entry);
    if (callbacks.size === 0) forget(signal);
  };
}

function listen(signal: AbortSignal): Set<() => void> {
  const callbacks = new Set<() => void>();
  waiting.set(signal, callbacks);
  signal.addEventListener("abort", callAll);
  return callbacks;
}

function forget(signal: AbortSignal): void {
  waiting.delete(signal);
  signal.removeEventListener("abort", callAll);
}

function callAll({ target }: Event): void {
  const signal = target as AbortSignal;
  const callbacks = waiting.get(signal) ?? [];
  forget(signal);
  for (const callback of callbacks) callback();
}

/** The promise, or an `AbortError` as soon as the signal is aborted. */
export async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  let stopWaiting = () => {};
  const aborted = new Promise<never>((_, reject) => {
    stopWaiting = onAbort(signal, () => reject(new AbortError(signal)));
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    stopWaiting();
  }
}
