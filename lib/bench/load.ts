/** When requests are sent: arrivals at a rate, as bursty as asked for, and a limit on how many are under way. */
import { setTimeout as delay } from 'node:timers/promises';
import type { Outcome } from './client.js';
import type { BenchRequest } from './dataset.js';
import { Random } from './random.js';

export interface Arrivals {
  /** Requests a second; Infinity sends all at once. */
  requestRate: number;
  /** Shape of the gamma distribution of gaps: 1 is a Poisson process, less is burstier, more is steadier, Infinity even. */
  burstiness: number;
  seed: number;
}

export interface Load extends Arrivals {
  /** Requests under way at once; undefined: any number. */
  maxConcurrency: number | undefined;
  send: (request: BenchRequest, dueAt: number) => Promise<Outcome>;
  onDone?: ((done: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** When each request is due, in seconds. Scaled so that the last comes when the rate says, whatever the gaps drawn. */
export function arrivalTimes(count: number, { requestRate, burstiness, seed }: Arrivals): number[] {
  if (requestRate === Infinity) return Array.from({ length: count }, () => 0);
  const random = new Random(seed);
  let last = 0;
  const times = Array.from({ length: count }, () => {
    last += burstiness === Infinity ? 1 / requestRate : random.gamma(burstiness, 1 / (requestRate * burstiness));
    return last;
  });
  return times.map((time) => (time * count) / requestRate / last);
}

/** Sends every request and returns their outcomes in the order of requests, and how long it all took in seconds. */
export async function runLoad(
  requests: readonly BenchRequest[],
  load: Load,
): Promise<{ outcomes: Outcome[]; duration: number }> {
  const due = arrivalTimes(requests.length, load);
  const slots = new Slots(load.maxConcurrency ?? Infinity);
  const start = performance.now();
  let done = 0;
  const outcomes = await Promise.all(
    requests.map(async (request, i) => {
      const dueAt = start + (due[i] ?? 0) * 1000;
      const wait = dueAt - performance.now();
      if (wait > 0) await delay(wait, undefined, { signal: load.signal });
      await slots.take();
      try {
        load.signal?.throwIfAborted();
        return await load.send(request, dueAt);
      } finally {
        slots.give();
        load.onDone?.(++done);
      }
    }),
  );
  return { outcomes, duration: (performance.now() - start) / 1000 };
}

class Slots {
  private readonly waiting: (() => void)[] = [];

  constructor(private free: number) {}

  async take(): Promise<void> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((resolve) => this.waiting.push(resolve));
  }

  give(): void {
    const next = this.waiting.shift();
    if (next === undefined) this.free++;
    else next();
  }
}
