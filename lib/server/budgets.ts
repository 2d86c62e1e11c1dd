/** What each caller has in use: answers at a time, and tokens per minute as a bucket that refills steadily. */
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

/** The answers that a request has running, of those its caller may have. */
export class Claim {
  private held = 0;
  private isEnded = false;

  constructor(
    private readonly account: Account,
    private readonly limit: number,
  ) {}

  /** To so many answers in all. */
  grow(answers: number): void {
    if (this.isEnded || answers <= this.held) return;
    if (answers > this.limit) {
      const message = `n: this key may have ${this.limit} answers running, and the request alone asks for ${answers}`;
      throw new OpenAIError(400, { message, param: 'n', code: 'concurrency_limit' });
    }
    if (this.account.running + answers - this.held > this.limit) {
      const message = `this key may have ${this.limit} answers running, and that many would be passed`;
      throw new OpenAIError(429, { message, code: 'concurrency_limit' }, { retryAfter: CONCURRENCY_RETRY_SECONDS });
    }
    this.account.running += answers - this.held;
    this.held = answers;
  }

  end(): void {
    if (!this.isEnded) this.account.running -= this.held;
    this.isEnded = true;
  }
}

export class Budgets {
  private readonly accounts = new Map<string | undefined, Account>();

  constructor(private readonly now: () => number = () => performance.now()) {}

  /** Lets a request begin, or refuses it. The claim it returns ends with the request. */
  admit(caller: Caller): Claim {
    const { tokensPerMinute } = caller.limits;
    const account = this.account(caller);
    if (tokensPerMinute !== undefined && account.tokens <= 0) {
      const wait = ((1 - account.tokens) * MINUTE_MS) / tokensPerMinute;
      const message = `this key has used its ${tokensPerMinute} tokens per minute`;
      throw new OpenAIError(429, { message, code: 'rate_limit_exceeded' }, { retryAfter: Math.max(1, Math.ceil(wait / 1000)) });
    }
    const claim = new Claim(account, caller.limits.maxConcurrency ?? Number.POSITIVE_INFINITY);
    claim.grow(1);
    return claim;
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
