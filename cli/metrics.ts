/**
 * Counters in the text format of Prometheus.
 *
 * Why not prom-client: it needs OpenTelemetry's API and a digest library, for a handful of numbers.
 */

import type { Embedder, Reranker } from "../embedder.js";

/** Upper bounds in seconds: from a cached query to a large batch on a small machine. */
const BUCKETS = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

interface Durations {
  /** Requests by bucket, the last one without an upper bound. */
  counts: number[];
  sum: number;
}

export type Labels = Readonly<Record<string, string>>;

/** Counters of the server; those of the model are read for each page. */
export class Metrics {
  /** Requests that are being read, computed or answered. */
  requestsInFlight = 0;
  readonly #requests = new Map<string, number>();
  readonly #durations = new Map<string, Durations>();

  /** Counts a request that was answered, or that its client gave up (`status` "aborted"). */
  observe(route: string, status: string, seconds: number): void {
    const key = labelled({ route, status });
    this.#requests.set(key, (this.#requests.get(key) ?? 0) + 1);
    const durations = this.#durations.get(route) ?? { counts: BUCKETS.map(() => 0).concat(0), sum: 0 };
    this.#durations.set(route, durations);
    const bucket = BUCKETS.findIndex((bound) => seconds <= bound);
    const index = bucket < 0 ? BUCKETS.length : bucket;
    durations.counts[index] = (durations.counts[index] ?? 0) + 1;
    durations.sum += seconds;
  }

  async page(loaded: Embedder | Reranker, info: Labels): Promise<string> {
    const facts = await loaded.info();
    const { calls, texts, tokens, batches, truncatedTexts } = facts;
    const cacheHits: Sample[] = "queryCacheHits" in facts ? [["", facts.queryCacheHits]] : [];
    const { user, system } = process.cpuUsage();
    const memory = process.memoryUsage.rss();
    const requests = [...this.#requests].map(([labels, count]): Sample => [labels, count]);
    return [
      metric("info", "gauge", "The model that is served.", [[labelled(info), 1]]),
      metric("requests_total", "counter", "Answered requests.", requests),
      metric(
        "request_duration_seconds",
        "histogram",
        "From a request's headers to the end of its answer.",
        this.#histogram(),
      ),
      metric("requests_in_flight", "gauge", "Requests that are being read, computed or answered.", [
        ["", this.requestsInFlight],
      ]),
      metric("calls_in_progress", "gauge", "Calls of the model that are queued or computed.", [["", calls]]),
      metric("texts_total", "counter", "Texts computed.", [["", texts]]),
      metric("tokens_total", "counter", "Tokens computed.", [["", tokens]]),
      metric("batches_total", "counter", "Runs of the model.", [["", batches]]),
      metric("truncated_texts_total", "counter", "Texts truncated to the token limit.", [["", truncatedTexts]]),
      metric("query_cache_hits_total", "counter", "Queries answered from the cache.", cacheHits),
      metric("process_cpu_seconds_total", "counter", "Processor time.", [["", (user + system) / 1e6]], ""),
      metric("process_resident_memory_bytes", "gauge", "Resident memory.", [["", memory]], ""),
      metric("process_start_time_seconds", "gauge", "Start, in Unix time.", [["", performance.timeOrigin / 1000]], ""),
    ].join("");
  }

  *#histogram(): Generator<Sample> {
    for (const [route, { counts, sum }] of this.#durations) {
      let below = 0;
      for (const [index, count] of counts.entries()) {
        below += count;
        yield [labelled({ route, le: String(BUCKETS[index] ?? "+Inf") }), below, "_bucket"];
      }
      yield [labelled({ route }), sum, "_sum"];
      yield [labelled({ route }), below, "_count"];
    }
  }
}

/** Labels in the text format, the value, and a suffix of the name. */
type Sample = [labels: string, value: number, suffix?: string];

const PREFIX = "semantic_search_";

function metric(name: string, type: string, help: string, samples: Iterable<Sample>, prefix = PREFIX): string {
  const full = prefix + name;
  const lines = Array.from(samples, ([labels, value, suffix = ""]) => `${full}${suffix}${labels} ${value}\n`);
  return `# HELP ${full} ${help}\n# TYPE ${full} ${type}\n${lines.join("")}`;
}

function labelled(labels: Labels): string {
  const escaped = (value: string) => value.replace(/[\\"\n]/g, (c) => (c === "\n" ? "\\n" : `\\${c}`));
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escaped(value)}"`);
  return `{${pairs.join(",")}}`;
}
