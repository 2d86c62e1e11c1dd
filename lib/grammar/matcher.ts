/**
 * Grammars of one model: what tokens may come next, so that an answer has the form that was asked for. Compiling and
 * matching happen in threads of their own (worker.ts); here is decided which thread does what.
 *
 * A grammar is compiled where nobody waits: in a spare thread, which then serves it. When there are as many serving
 * threads as there may be, one of them compiles a second time what the spare has compiled within the limits; if that is
 * slow work and matchers would wait for it, there may be a few threads more. A thread that breaks or hangs takes down the
 * request at fault; the other matchers walk their tokens again in another thread.
 */
import { createHash } from 'node:crypto';
import { AbortError, BusyError, DisposedError, InvalidArgumentError } from '../errors.js';
import type { StructuredOutput } from '../types.js';
import { readForm } from './form.js';
import { reasonOf, SequenceMatcher, type SequenceThreads } from './sequence.js';
import { type SetupOptions, setupOf } from './setup.js';
import { GrammarThread, JobError } from './thread.js';
import type { Program, WorkerSetup } from './worker.js';

/** One sequence's walk through a grammar. */
export interface GrammarMatcher {
  /**
   * The ids allowed at the present position: bit (id & 31) of word (id >> 5). Stop ids are allowed exactly where the
   * grammar may end.
   */
  mask(): Promise<Int32Array>;
  /**
   * That mask, and behind it one for the position after each token of `path`, up to the first that the grammar refuses or may
   * end at. The position stays where it is.
   */
  masks(path: readonly number[]): Promise<Int32Array>;
  /** Goes on by one token, before the next `mask`. */
  accept(id: number): void;
  /** Goes back by `count` tokens. */
  rollback(count: number): void;
  /** May be called again. */
  close(): void;
}

export interface GrammarsOptions extends SetupOptions {
  /** What compiling one grammar may take. Default 30 s. */
  compileMs?: number;
  /** What one mask may take. Default 10 s. */
  maskMs?: number;
}

const COMPILE_MS = 30_000;
const MASK_MS = 10_000;
/** Threads that serve matchers, and those with the ones added so that no matcher waits for a slow compilation. */
const MAX_SERVING = 3;
const MAX_SERVING_BUSY = 6;
const SLOW_MS = 500;
/** Grammars compiled at once: a slow one holds up half of the others at most. */
const MAX_COMPILING = 2;
/** Compiled grammars a thread keeps for the next request. */
const MAX_GRAMMARS = 32;
/** Grammars that may wait to be compiled. */
const MAX_QUEUED = 64;
const IDLE_MS = 300_000;

export class Grammars implements SequenceThreads {
  private readonly serving = new Set<GrammarThread>();
  /** Threads that have nothing to do and serve nobody. */
  private readonly spares = new Set<GrammarThread>();
  private setup: WorkerSetup | undefined;
  private compilingNow = 0;
  private readonly turns: (() => void)[] = [];
  /** By key, so that a hundred requests of one form compile it once. */
  private readonly compiling = new Map<string, Promise<GrammarThread>>();
  private readonly idle = new Map<GrammarThread, NodeJS.Timeout>();
  private nextMatcher = 0;
  private closed = false;

  constructor(private readonly options: GrammarsOptions) {}

  /** A matcher at the start of the form; an InvalidArgumentError where the form is wrong or too large or slow to compile. */
  async open(form: StructuredOutput, { signal }: { signal?: AbortSignal | undefined } = {}): Promise<GrammarMatcher> {
    const program = readForm(form);
    const matcher = new SequenceMatcher(this, this.nextMatcher++, program, keyOf(program));
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
    for (const thread of [...this.idle.keys()]) thread.end(new DisposedError());
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
    const compiled = this.inTurn(() => this.compile(key, program)).finally(() => this.compiling.delete(key));
    this.compiling.set(key, compiled);
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

  private async inTurn<T>(work: () => Promise<T>): Promise<T> {
    if (this.compilingNow < MAX_COMPILING) this.compilingNow += 1;
    else await new Promise<void>((resolve) => this.turns.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.turns.shift();
      if (next === undefined) this.compilingNow -= 1;
      else next();
    }
  }

  private async compile(key: string, program: Program): Promise<GrammarThread> {
    const compileMs = this.options.compileMs ?? COMPILE_MS;
    if (this.closed) throw new DisposedError();
    const [spare = this.startThread()] = this.spares;
    this.spares.delete(spare);
    const begun = performance.now();
    try {
      await spare.call({ op: 'compile', key, program }, compileMs);
    } catch (error) {
      if (!(error instanceof JobError)) throw error;
      if (!spare.isEnded) this.spares.add(spare);
      throw new InvalidArgumentError('structured', `structured: ${reasonOf(error)}`, hintOf(program));
    }
    const thread = this.hostOf(performance.now() - begun > SLOW_MS) ?? spare;
    if (thread === spare) this.serving.add(spare);
    else {
      spare.post({ op: 'forget', key });
      this.spares.add(spare);
      await thread.call({ op: 'compile', key, program }, 2 * compileMs);
    }
    this.makeRoom(thread);
    thread.grammars.set(key, 0);
    this.watchIdle(thread);
    return thread;
  }

  /** The serving thread that a further grammar goes to; undefined where it should have a thread of its own. */
  private hostOf(isSlow: boolean): GrammarThread | undefined {
    if (this.serving.size < MAX_SERVING) return undefined;
    const host = [...this.serving].reduce((a, b) => (b.load < a.load ? b : a));
    return isSlow && host.load > 0 && this.serving.size < MAX_SERVING_BUSY ? undefined : host;
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
      this.spares.delete(ended);
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

function keyOf(program: Program): string {
  return createHash('sha256').update(JSON.stringify(program)).digest('base64');
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
