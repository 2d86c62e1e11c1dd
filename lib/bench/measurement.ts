/**
 * Outcomes of one run as figures, from which every format of result is written.
 *
 * TTFT: from sending a request to its first chunk with content. TPOT: (E2E - TTFT) / (output tokens - 1). ITL: the gaps
 * between chunks with content; where a chunk holds several tokens (speculation), TPOT is the fair figure. E2E: from sending
 * to the last chunk. Tokens are those of the server's `usage`.
 */
import type { Outcome } from './client.js';
import { sum } from './statistics.js';

export const METRICS = ['ttft', 'tpot', 'itl', 'e2el', 'client_queue_time', 'e2el_including_client_queue'] as const;
export type Metric = (typeof METRICS)[number];

export const METRIC_NAMES: Record<Metric, { short: string; long: string }> = {
  ttft: { short: 'TTFT', long: 'Time to First Token' },
  tpot: { short: 'TPOT', long: 'Time per Output Token (excl. 1st token)' },
  itl: { short: 'ITL', long: 'Inter-token Latency' },
  e2el: { short: 'E2EL', long: 'End-to-end Latency' },
  client_queue_time: { short: 'Client Queue Time', long: 'Client-side Queueing' },
  e2el_including_client_queue: { short: 'E2EL incl. Client Queue', long: 'Queue-inclusive End-to-end Latency' },
};

/** Targets in ms that a request must meet to count as good. */
export type Goodput = Partial<Record<'ttft' | 'tpot' | 'e2el', number>>;

/** One request as the result files have it; times in seconds, 0 for what a failed request never reached. */
export interface RequestFigures {
  inputLen: number;
  outputLen: number;
  startTime: number;
  ttft: number;
  itls: number[];
  latency: number;
  text: string;
  error: string;
}

export interface Measurement {
  duration: number;
  completed: number;
  failed: number;
  totalInput: number;
  totalOutput: number;
  /** Samples in ms over the requests that completed. */
  samples: Record<Metric, number[]>;
  good: number | undefined;
  /** The most tokens of any second, and the most requests under way at one moment; failed requests are in neither. */
  peakOutputPerSecond: number;
  peakConcurrency: number;
  /** Output tokens in each second of the run. */
  outputPerSecond: number[];
  requests: RequestFigures[];
}

/** `countTokens` is for servers that send no usage. */
export function measure(
  outcomes: readonly Outcome[],
  duration: number,
  goodput: Goodput | undefined,
  countTokens: (text: string) => number,
): Measurement {
  const samples: Measurement['samples'] = {
    ttft: [],
    tpot: [],
    itl: [],
    e2el: [],
    client_queue_time: [],
    e2el_including_client_queue: [],
  };
  const succeeded = outcomes.filter((outcome) => outcome.error === undefined);
  const timeline = new Timeline(succeeded.reduce((first, { sentAt }) => Math.min(first, sentAt), Infinity));
  const requests: RequestFigures[] = [];
  let good = 0;
  for (const outcome of outcomes) {
    const failed = outcome.error !== undefined;
    const { sentAt, chunkTimes, endedAt } = outcome;
    const outputLen = failed ? 0 : (outcome.outputTokens ?? countTokens(outcome.text));
    const ttft = (chunkTimes[0] ?? endedAt) - sentAt;
    const itls = chunkTimes.slice(1).map((time, i) => time - (chunkTimes[i] ?? time));
    const latency = endedAt - sentAt;
    requests.push({
      inputLen: outcome.promptTokens ?? 0,
      outputLen,
      startTime: sentAt / 1000,
      ttft: failed ? 0 : ttft / 1000,
      itls: itls.map((gap) => gap / 1000),
      latency: failed ? 0 : latency / 1000,
      text: outcome.text,
      error: outcome.error ?? '',
    });
    if (failed) continue;
    timeline.underWay(sentAt, endedAt);
    const tpot = outputLen > 1 ? (latency - ttft) / (outputLen - 1) : undefined;
    samples.ttft.push(ttft);
    if (tpot !== undefined) samples.tpot.push(tpot);
    for (const gap of itls) samples.itl.push(gap);
    samples.e2el.push(latency);
    samples.client_queue_time.push(Math.max(0, sentAt - outcome.dueAt));
    samples.e2el_including_client_queue.push(endedAt - Math.min(outcome.dueAt, sentAt));
    for (const time of chunkTimes) timeline.tokens(time, outputLen / chunkTimes.length);
    const reached = { ttft, tpot: tpot ?? 0, e2el: latency };
    if (Object.entries(goodput ?? {}).every(([metric, target]) => reached[metric as keyof Goodput] <= target)) good++;
  }
  const completed = succeeded.length;
  return {
    duration,
    completed,
    failed: outcomes.length - completed,
    totalInput: sum(requests.filter((request) => request.error === '').map((request) => request.inputLen)),
    totalOutput: sum(requests.map((request) => request.outputLen)),
    samples,
    good: goodput === undefined ? undefined : good,
    peakOutputPerSecond: Math.max(0, ...timeline.outputPerSecond()),
    peakConcurrency: timeline.peakConcurrency(),
    outputPerSecond: timeline.outputPerSecond(),
    requests,
  };
}

/** What happened in each second since the first request. */
class Timeline {
  private readonly output: number[] = [];
  private readonly edges: [number, number][] = [];

  constructor(private readonly start: number) {}

  tokens(time: number, count: number): void {
    const second = Math.floor((time - this.start) / 1000);
    this.output[second] = (this.output[second] ?? 0) + count;
  }

  underWay(from: number, to: number): void {
    this.edges.push([from, 1], [to, -1]);
  }

  outputPerSecond(): number[] {
    return Array.from(this.output, (tokens) => tokens ?? 0);
  }

  /** An end at the moment of a start makes room for it. */
  peakConcurrency(): number {
    let running = 0;
    let peak = 0;
    for (const [, step] of [...this.edges].sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
      running += step;
      peak = Math.max(peak, running);
    }
    return peak;
  }
}
