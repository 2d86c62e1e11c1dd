/** What each caller has in use: requests at a time, and tokens per minute as a bucket that refills steadily. */
import { OpenAIError } from '../openai/index.js';
import type { Caller } from './keys.js';

interface Account {
  running: number;
  /** Tokens left; below zero after a request that took more than there were. */
  tokens: number;
  refilledAt: number;
}

const MINUTE_MS = 60_000;
const CONCURRENCY_RETRY_SECONDS = 1;

export class Budgets {
  private readonly accounts = new Map<string | undefined, Account>();

  constructor(private readonly now: () => number = () => performance.now()) {}

  /** Lets a request begin, or refuses it. What it returns is called once when the request has ended. */
  admit(caller: Caller): () => void {
    const { maxConcurrency, tokensPerMinute } = caller.limits;
    const account = this.account(caller);
    if (maxConcurrency !== undefined && account.running >= maxConcurrency) {
      const message = `this key has ${maxConcurrency} requests running, which is its limit`;
      throw new OpenAIError(429, { message, code: 'concurrency_limit' }, { retryAfter: CONCURRENCY_RETRY_SECONDS });
    }
    if (tokensPerMinute !== undefined && account.tokens <= 0) {
      const wait = ((1 - account.tokens) * MINUTE_MS) / tokensPerMinute;
      const message = `this key has used its ${tokensPerMinute} tokens per minute`;
      throw new OpenAIError(429, { message, code: 'rate_limit_exceeded' }, { retryAfter: Math.max(1, Math.ceil(wait / 1000)) });
    }
    account.running += 1;
    let ended = false;
    return () => {
      if (!ended) account.running -= 1;
      ended = true;
    };
  }

  charge(caller: Caller, tokens: number): void {
    if (caller.limits.tokensPerMinute !== undefined) this.account(caller).tokens -= tokens;
  }

  private account({ id, limits }: Caller): Account {
    const now = this.now();
    const full = limits.tokensPerMinute ?? 0;
    let account = this.accounts.get(id);
    if (account === undefined) {
      account = { running: 0, tokens: full, refilledAt: now };
      this.accounts.set(id, account);
    }
    account.tokens = Math.min(full, account.tokens + ((now - account.refilledAt) / MINUTE_MS) * full);
    account.refilledAt = now;
    return account;
  }
}
