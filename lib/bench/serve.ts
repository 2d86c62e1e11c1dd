/** `sigmoe bench serve`: drives an OpenAI-compatible server and measures it, at one concurrency or at several in turn. */
import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import type { Tokenizer } from '../index.js';
import { BenchClient, type Target } from './client.js';
import {
  type Counters,
  type PrefixCache,
  prefixCacheBetween,
  readCounters,
  type Speculation,
  speculationBetween,
} from './counters.js';
import type { BenchRequest } from './dataset.js';
import { runLoad } from './load.js';
import { type Goodput, type Measurement, measure } from './measurement.js';
import { sum } from './statistics.js';

/** Between attempts to reach a server that is still starting. */
const RETRY_MS = 500;

export interface ServeOptions {
  target: Target;
  requests: readonly BenchRequest[];
  /** Sent first, to see whether the server answers, and as every warm-up. */
  warmup: BenchRequest;
  requestRate: number;
  burstiness: number;
  maxConcurrency: number | undefined;
  /** Requests before those that count, beside the first check. */
  warmups: number;
  seed: number;
  goodput: Goodput | undefined;
  /** Counts tokens where a server sends no usage. */
  tokenizer: Tokenizer | undefined;
  onDone?: (done: number) => void;
  signal?: AbortSignal;
}

export interface ServeRun {
  measured: Measurement;
  speculation: Speculation | undefined;
  prefixCache: PrefixCache | undefined;
  /** Output tokens as `tokenizer` counts the texts; null without one. */
  retokenized: number | null;
}

/** Warms up, then measures. Fails where the server answers nothing right; single failed requests are counted. */
export async function benchServe(options: ServeOptions): Promise<ServeRun> {
  const { target, requests, tokenizer, signal } = options;
  // Every request under way listens to it.
  if (signal !== undefined) setMaxListeners(0, signal);
  const client = new BenchClient(target);
  try {
    const check = await client.send(options.warmup, signal);
    signal?.throwIfAborted();
    if (check.error !== undefined) throw new Error(`${client.url.href} did not answer a first request: ${check.error}`);
    if (check.outputTokens === undefined && tokenizer === undefined) {
      throw new Error(`${client.url.href} sends no usage with its streams, and there is no --tokenizer to count tokens with`);
    }
    const send = (request: BenchRequest, dueAt: number) => client.send(request, signal, dueAt);
    const warmups = Array.from({ length: options.warmups }, () => options.warmup);
    await runLoad(warmups, { ...options, requestRate: Infinity, send, onDone: undefined });
    const before = await countersOf(client, signal);
    const { outcomes, duration } = await runLoad(requests, { ...options, send });
    signal?.throwIfAborted();
    const after = await countersOf(client, signal);
    const countTokens = (text: string) => tokenizer?.encode(text, { special: false }).length ?? 0;
    const measured = measure(outcomes, duration, options.goodput, countTokens);
    return {
      measured,
      speculation: speculationBetween(before, after),
      prefixCache: prefixCacheBetween(before, after),
      retokenized:
        tokenizer === undefined
          ? null
          : sum(measured.requests.map(({ text, error }) => (error === '' ? countTokens(text) : 0))),
    };
  } finally {
    client.close();
  }
}

/** None of a server that shows none. */
async function countersOf(client: BenchClient, signal: AbortSignal | undefined): Promise<Counters> {
  const { status, text } = await client.page('/metrics', signal);
  return readCounters(status === 200 ? text : '');
}

/** Tries until it succeeds or the time is over; then the last error counts. For servers that are still starting. */
export async function untilReady<T>(seconds: number, attempt: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  const end = performance.now() + seconds * 1000;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (signal?.aborted || performance.now() >= end) throw error;
      await delay(RETRY_MS, undefined, { signal });
    }
  }
}

/** The id of the first model a server lists. */
export async function firstModel(
  target: Omit<Target, 'model' | 'body' | 'api' | 'endpoint'>,
  signal?: AbortSignal,
): Promise<string> {
  const endpoint = '/v1/models';
  const client = new BenchClient({ ...target, endpoint, api: 'completions', model: '', body: {} });
  try {
    const { status, text } = await client.page(endpoint, signal);
    if (status === 401) throw new Error('status 401: it wants a key; set OPENAI_API_KEY');
    if (status !== 200) throw new Error(`status ${status}`);
    const list = JSON.parse(text) as { data?: { id?: unknown }[] };
    const id = list.data?.[0]?.id;
    if (typeof id !== 'string') throw new Error('it lists no model; name one with --model');
    return id;
  } catch (error) {
    throw new Error(`${client.url.href}: ${error instanceof Error ? error.message || 'no connection' : String(error)}`);
  } finally {
    client.close();
  }
}
