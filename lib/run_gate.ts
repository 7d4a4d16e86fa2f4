/**
 * Keeps a thread from ending while its worker is inside `onnxruntime-node`: ended there, the whole process would be
 * aborted. Both sides share a few bytes, so that the ending thread, which runs no more events, can still wait.
 */

const [STOPPED, RUNNING] = [0, 1];
/** How long an ending thread waits. A text takes at most some seconds. */
const PATIENCE_MS = 10_000;

const gates = new Set<RunGate>();

/** The side of the thread that may end. */
export class RunGate {
  readonly shared = new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT);
  readonly #flags = new Int32Array(this.shared);

  /** Watches for the thread's end until `dispose`. */
  constructor() {
    if (gates.size === 0) process.on("exit", shutAll);
    gates.add(this);
  }

  dispose(): void {
    gates.delete(this);
    if (gates.size === 0) process.off("exit", shutAll);
  }

  /** Lets no further run begin, and waits for the end of one that has begun. */
  shut(): void {
    Atomics.store(this.#flags, STOPPED, 1);
    Atomics.wait(this.#flags, RUNNING, 1, PATIENCE_MS);
  }
}

function shutAll(): void {
  for (const gate of gates) gate.shut();
}

/** The side of the worker: runs `work`, or never returns if the other thread is ending. */
export async function runInside<T>(shared: SharedArrayBuffer, work: () => Promise<T>): Promise<T> {
  const flags = new Int32Array(shared);
  Atomics.store(flags, RUNNING, 1);
  try {
    if (Atomics.load(flags, STOPPED) === 1) {
      leave(flags);
      await new Promise<never>(() => {});
    }
    return await work();
  } finally {
    leave(flags);
  }
}

function leave(flags: Int32Array): void {
  Atomics.store(flags, RUNNING, 0);
  Atomics.notify(flags, RUNNING);
}
