import { AbortError } from "./errors.js";

/** What to do when a signal is aborted. */
const waiting = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls `callback` once the signal is aborted, unless the function that it returns was called before. However many calls
 * wait for a signal, it has one listener of this package: of more than ten, Node.js warns as of a leak.
 */
export function onAbort(signal: AbortSignal | undefined, callback: () => void): () => void {
  if (!signal) return () => {};
  const callbacks = waiting.get(signal) ?? listen(signal);
  // An object of its own: two calls may wait with the same function.
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
