/** How often and how long to try again. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Passing } from './failures.js';

export interface Policy {
  /** Tries in a row without progress before a download fails. */
  tries: number;
  /** Wait after the first failure; doubled after each, up to `maxDelayMs`, of which a random half is taken. */
  delayMs: number;
  maxDelayMs: number;
  /** Longest wait that a server may ask for. */
  maxRetryAfterMs: number;
  /** A file is fetched in ranges of this many bytes, several at a time. */
  chunkBytes: number;
}

export const DEFAULT_POLICY: Policy = {
  tries: 6,
  delayMs: 500,
  maxDelayMs: 30_000,
  maxRetryAfterMs: 300_000,
  chunkBytes: 32 * 1024 * 1024,
};

/** Tries until `attempt` ends without a `Passing` error. `progressed` tells whether the last failure came after some success. */
export async function retrying<T>(
  policy: Policy,
  signal: AbortSignal,
  onNote: (line: string) => void,
  attempt: () => Promise<T>,
  progressed: () => boolean = () => false,
): Promise<T> {
  let failures = 0;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof Passing) || signal.aborted) throw error;
      failures = progressed() ? 1 : failures + 1;
      if (failures >= policy.tries || (error.waitMs ?? 0) > policy.maxRetryAfterMs) throw error;
      const backoff = Math.min(policy.maxDelayMs, policy.delayMs * 2 ** (failures - 1));
      const wait = Math.max(error.waitMs ?? 0, backoff * (0.5 + Math.random() / 2));
      if (wait > 2000) onNote(`${error.message}; trying again in ${Math.ceil(wait / 1000)} s`);
      await sleep(wait, undefined, { signal });
    }
  }
}
