/**
 * Grammars of one model: what tokens may come next, so that an answer has the form that was asked for. Compiling and
 * matching happen in threads of their own (worker.ts); here is decided which thread does what.
 *
 * A grammar is compiled where nobody waits: in a spare thread, which then serves it while another becomes the spare.
 * Only when there are as many serving threads as there may be does one of them compile a grammar while its matchers
 * wait, and then one that the spare has compiled within the limits. A thread that breaks or hangs takes down the request
 * at fault; the other matchers walk their tokens again in another thread.
 */
import { createHash } from 'node:crypto';
import { AbortError, BusyError, DisposedError, InternalError, InvalidArgumentError } from '../errors.js';
import type { StructuredOutput } from '../types.js';
import { readForm } from './form.js';
import { type SetupOptions, setupOf } from './setup.js';
import { GrammarThread, JobError, ThreadLost } from './thread.js';
import type { Program, WorkerSetup } from './worker.js';

/** One sequence's walk through a grammar. */
export interface GrammarMatcher {
  /**
   * The ids allowed at the present position: bit (id & 31) of word (id >> 5). Stop ids are allowed exactly where the
   * grammar may end.
   */
  mask(): Promise<Int32Array>;
  /** Goes on by one token, before the next `mask`. */
  accept(id: number): void;
  /** Goes back by `count` tokens. */
  rollback(count: number): void;
  /** May be called again. */
  close(): void;
}

export interface GrammarsOptions extends SetupOptions {
  /** What compiling one grammar may take. Default 10 s. */
  compileMs?: number;
  /** What one mask may take. Default 10 s. */
  maskMs?: number;
}

const COMPILE_MS = 10_000;
const MASK_MS = 10_000;
/** Threads that serve matchers; one more may be compiling. */
const MAX_SERVING = 3;
/** Compiled grammars a thread keeps for the next request. */
const MAX_GRAMMARS = 32;
/** Grammars that may wait to be compiled. */
const MAX_QUEUED = 64;
const IDLE_MS = 300_000;
/** Times a matcher moves to another thread before it gives up. */
const MAX_MOVES = 3;

export class Grammars {
  private readonly serving = new Set<GrammarThread>();
  private spare: GrammarThread | undefined;
  private setup: WorkerSetup | undefined;
  private queue: Promise<unknown> = Promise.resolve();
  /** By key, so that a hundred requests of one form compile it once. */
  private readonly compiling = new Map<string, Promise<GrammarThread>>();
  private readonly idle = new Map<GrammarThread, NodeJS.Timeout>();
  private nextMatcher = 0;
  private closed = false;

  constructor(private readonly options: GrammarsOptions) {}

  /** A matcher at the start of the form; an InvalidArgumentError where the form is wrong or too large or slow to compile. */
  async open(form: StructuredOutput, { signal }: { signal?: AbortSignal | undefined } = {}): Promise<GrammarMatcher> {
    const program = readForm(form);
    const matcher = new Matcher(this, this.nextMatcher++, program, keyOf(program));
    try {
      await unlessAborted(matcher.start(), signal);
    } catch (error) {
      matcher.close();
      throw error;
    }
    return matcher;
  }

  /** Ends the threads; open matchers fail. */
  async close(): Promise<void> {
    this.closed = true;
    this.spare?.end(new DisposedError());
    for (const thread of [...this.serving]) thread.end(new DisposedError());
  }

  get maskMs(): number {
    return this.options.maskMs ?? MASK_MS;
  }

  get isClosed(): boolean {
    return this.closed;
  }

  /** A thread that has the grammar. */
  threadOf(key: string, program: Program): Promise<GrammarThread> {
    if (this.closed) return Promise.reject(new DisposedError());
    const serving = this.servingOf(key);
    if (serving !== undefined) return Promise.resolve(serving);
    const begun = this.compiling.get(key);
    if (begun !== undefined) return begun;
    if (this.compiling.size >= MAX_QUEUED) {
      const message = `structured: ${this.compiling.size} other forms wait to be compiled`;
      return Promise.reject(new BusyError(message, 'try again in a few seconds'));
    }
    const compiled = this.queue.then(() => this.compile(key, program)).finally(() => this.compiling.delete(key));
    this.compiling.set(key, compiled);
    this.queue = compiled.catch(() => {});
    return compiled;
  }

  /** Counts a matcher in or out. */
  use(thread: GrammarThread, key: string, change: 1 | -1): void {
    if (!this.serving.has(thread)) return;
    const users = thread.grammars.get(key) ?? 0;
    thread.grammars.delete(key);
    thread.grammars.set(key, users + change);
    this.watchIdle(thread);
  }

  private servingOf(key: string): GrammarThread | undefined {
    for (const thread of this.serving) if (thread.grammars.has(key)) return thread;
    return undefined;
  }

  private async compile(key: string, program: Program): Promise<GrammarThread> {
    const compileMs = this.options.compileMs ?? COMPILE_MS;
    if (this.closed) throw new DisposedError();
    this.spare ??= this.startThread();
    const { spare } = this;
    try {
      await spare.call({ op: 'compile', key, program }, compileMs);
    } catch (error) {
      if (!(error instanceof JobError)) throw error;
      throw new InvalidArgumentError('structured', `structured: ${reasonOf(error)}`, hintOf(program));
    }
    const isFull = this.serving.size >= MAX_SERVING;
    const thread = isFull ? [...this.serving].reduce((a, b) => (b.load < a.load ? b : a)) : spare;
    if (isFull) {
      await thread.call({ op: 'compile', key, program }, 2 * compileMs);
      spare.post({ op: 'forget', key });
    } else {
      this.serving.add(spare);
      this.spare = undefined;
    }
    this.makeRoom(thread);
    thread.grammars.set(key, 0);
    this.watchIdle(thread);
    return thread;
  }

  private makeRoom(thread: GrammarThread): void {
    for (const [key, users] of thread.grammars) {
      if (thread.grammars.size < MAX_GRAMMARS) return;
      if (users > 0) continue;
      thread.grammars.delete(key);
      thread.post({ op: 'forget', key });
    }
  }

  private startThread(): GrammarThread {
    this.setup ??= setupOf(this.options);
    const thread = new GrammarThread(this.setup, (ended) => {
      this.serving.delete(ended);
      if (this.spare === ended) this.spare = undefined;
      clearTimeout(this.idle.get(ended));
      this.idle.delete(ended);
    });
    this.watchIdle(thread);
    return thread;
  }

  /** Ends a thread that nobody has used for a while: its memory is worth more than its grammars. */
  private watchIdle(thread: GrammarThread): void {
    clearTimeout(this.idle.get(thread));
    const rest = () => (thread.isIdle ? thread.end() : this.watchIdle(thread));
    this.idle.set(thread, setTimeout(rest, IDLE_MS).unref());
  }
}

class Matcher implements GrammarMatcher {
  private readonly ids: number[] = [];
  /** The thread it is open in, and how many of `ids` that knows, once it has gone back by `back`. */
  private seat: { thread: GrammarThread; known: number; back: number } | undefined;
  private closed = false;

  constructor(
    private readonly grammars: Grammars,
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
    return this.moving(async () => {
      const seat = this.seat ?? (await this.sit());
      const job = { op: 'mask', matcher: this.number, rollback: seat.back, accept: this.ids.slice(seat.known) } as const;
      seat.back = 0;
      seat.known = this.ids.length;
      const { mask } = await seat.thread.call(job, this.grammars.maskMs);
      if (mask === undefined) throw new InternalError('a grammar thread answered without a mask');
      return mask;
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
    this.grammars.use(thread, this.key, -1);
  }

  /** Opens the matcher in a thread that has its grammar. */
  private async sit() {
    const thread = await this.grammars.threadOf(this.key, this.program);
    if (this.closed) throw new DisposedError('the matcher was closed', '');
    this.grammars.use(thread, this.key, 1);
    this.seat = { thread, known: 0, back: 0 };
    await thread.call({ op: 'open', matcher: this.number, key: this.key }, this.grammars.maskMs);
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
        if (this.grammars.isClosed) throw new DisposedError();
        if (moves === MAX_MOVES) throw new InternalError('the grammar threads end again and again');
        this.seat = undefined;
      }
    }
  }
}

function keyOf(program: Program): string {
  return createHash('sha256').update(JSON.stringify(program)).digest('base64');
}

/** The library's own words without the place in its source, short enough for one line. */
function reasonOf(error: Error): string {
  const reason = error.message.replace(/^\[(?:FATAL|WARNING)\] \S+?:\d+: /, '').replace(/^Check failed: .*? is false: /, '');
  return reason.slice(0, 300).trim();
}

function hintOf(program: Program): string {
  if (program.kind !== 'json' && program.kind !== 'calls') return '';
  return 'long maxLength, maxItems and deep nesting make a schema slow and large to compile';
}

async function unlessAborted(work: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return work;
  let abort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(new AbortError('the request was aborted', undefined, { cause: signal.reason }));
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
  });
  try {
    await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
    work.catch(() => {});
  }
}
