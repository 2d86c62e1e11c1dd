/**
 * One sequence's matcher: the tokens it has taken, and the place in a grammar thread where they were matched. Tokens go
 * to the thread with the next mask; should the thread be lost, all of them go to another.
 */
import { DisposedError, InternalError, InvalidArgumentError } from '../errors.js';
import type { GrammarMatcher } from './matcher.js';
import { type GrammarThread, JobError, ThreadLost } from './thread.js';
import type { Program } from './worker.js';

/** Where matchers get their threads from. */
export interface SequenceThreads {
  readonly maskMs: number;
  readonly isClosed: boolean;
  /** A thread that has the grammar. */
  threadOf(key: string, program: Program): Promise<GrammarThread>;
  /** Counts a matcher in or out. */
  use(thread: GrammarThread, key: string, change: 1 | -1): void;
}

/** Times a matcher moves to another thread before it gives up. */
const MAX_MOVES = 3;

export class SequenceMatcher implements GrammarMatcher {
  private readonly ids: number[] = [];
  /** The thread it is open in, and how many of `ids` that knows, once it has gone back by `back`. */
  private seat: { thread: GrammarThread; known: number; back: number } | undefined;
  private closed = false;

  constructor(
    private readonly threads: SequenceThreads,
    private readonly number: number,
    private readonly program: Program,
    private readonly key: string,
  ) {}

  async start(): Promise<void> {
    await this.moving(async () => {
      await this.sit();
    });
  }

  mask(): Promise<Int32Array> {
    return this.masks([]);
  }

  masks(path: readonly number[]): Promise<Int32Array> {
    return this.moving(async () => {
      const seat = this.seat ?? (await this.sit());
      const accept = this.ids.slice(seat.known);
      const job = { op: 'masks', matcher: this.number, rollback: seat.back, accept, path } as const;
      seat.back = 0;
      seat.known = this.ids.length;
      const { masks } = await seat.thread.call(job, this.threads.maskMs);
      if (masks === undefined) throw new InternalError('a grammar thread answered without a mask');
      return masks;
    });
  }

  accept(id: number): void {
    this.ids.push(id);
  }

  rollback(count: number): void {
    if (!Number.isInteger(count) || count < 0 || count > this.ids.length) {
      const message = `count: expected 0 to ${this.ids.length} tokens, found ${count}`;
      throw new InvalidArgumentError('count', message);
    }
    this.ids.length -= count;
    if (this.seat === undefined || this.ids.length >= this.seat.known) return;
    this.seat.back += this.seat.known - this.ids.length;
    this.seat.known = this.ids.length;
  }

  close(): void {
    this.closed = true;
    if (this.seat === undefined) return;
    const { thread } = this.seat;
    this.seat = undefined;
    thread.post({ op: 'close', matcher: this.number });
    this.threads.use(thread, this.key, -1);
  }

  /** Opens the matcher in a thread that has its grammar. */
  private async sit() {
    const thread = await this.threads.threadOf(this.key, this.program);
    if (this.closed) throw new DisposedError('the matcher was closed', '');
    this.threads.use(thread, this.key, 1);
    this.seat = { thread, known: 0, back: 0 };
    await thread.call({ op: 'open', matcher: this.number, key: this.key }, this.threads.maskMs);
    return this.seat;
  }

  /** Does something again in another thread when the thread was lost through no fault of this matcher. */
  private async moving<T>(work: () => Promise<T>): Promise<T> {
    for (let moves = 0; ; moves++) {
      if (this.closed) throw new DisposedError('the matcher was closed', '');
      try {
        return await work();
      } catch (error) {
        if (error instanceof JobError) throw new InvalidArgumentError('structured', `structured: ${reasonOf(error)}`);
        if (!(error instanceof ThreadLost)) throw error;
        if (this.threads.isClosed) throw new DisposedError();
        if (moves === MAX_MOVES) throw new InternalError('the grammar threads end again and again');
        this.seat = undefined;
      }
    }
  }
}

/** The library's own words without the place in its source, short enough for one line. */
export function reasonOf(error: Error): string {
  const reason = error.message.replace(/^\[(?:FATAL|WARNING)\] \S+?:\d+: /, '').replace(/^Check failed: .*? is false: /, '');
  return reason.slice(0, 300).trim();
}
