/**
 * One grammar thread, seen from outside: jobs in, answers out, in order. A job that takes longer than it may ends the
 * thread, as does one that breaks it; that job fails, and the others learn that their thread was lost.
 */
import { Worker } from 'node:worker_threads';
import { type Job, type Reply, type WorkerSetup, workerMain } from './worker.js';

/** The job itself failed. */
export class JobError extends Error {}

/** The thread ended under a job that was not at fault: it can be done again elsewhere. */
export class ThreadLost extends Error {}

interface Waiting {
  limitMs: number;
  resolve(reply: Reply): void;
  reject(error: Error): void;
}

export class GrammarThread {
  /** Grammars compiled here and the matchers open on each; the longest unused comes first. */
  readonly grammars = new Map<string, number>();

  private readonly worker: Worker;
  private readonly waiting: Waiting[] = [];
  private watch: NodeJS.Timeout | undefined;
  private ended = false;

  constructor(
    setup: WorkerSetup,
    private readonly onEnd: (thread: GrammarThread) => void,
  ) {
    // The process's own flags are not meant for the thread, nor what is printed there for the process.
    const options = { eval: true, execArgv: [], workerData: setup, stdout: true, stderr: true };
    this.worker = new Worker(`(${workerMain})()`, options);
    this.worker.unref();
    this.worker.on('message', (reply: Reply) => this.onReply(reply));
    this.worker.on('error', (error) => this.end(new JobError(`the grammar thread failed: ${error.message}`)));
    this.worker.on('exit', () => this.end(new JobError('the grammar thread ended')));
  }

  /** Open matchers: what a further grammar here would keep waiting. */
  get load(): number {
    let sum = 0;
    for (const users of this.grammars.values()) sum += users;
    return sum;
  }

  get isEnded(): boolean {
    return this.ended;
  }

  get isIdle(): boolean {
    return this.waiting.length === 0 && this.load === 0;
  }

  /** Sends a job that is answered, within `limitMs` from when it begins. */
  call(job: Job, limitMs: number): Promise<Reply> {
    if (this.ended) return Promise.reject(new ThreadLost());
    return new Promise((resolve, reject) => {
      this.waiting.push({ limitMs, resolve, reject });
      if (this.waiting.length === 1) this.begin();
      this.worker.postMessage(job);
    });
  }

  /** Sends a job that is not answered. */
  post(job: Job): void {
    if (!this.ended) this.worker.postMessage(job);
  }

  /** Ends the thread; the job in work, if any, fails with `reason`, those behind it are lost. */
  end(reason: Error = new ThreadLost()): void {
    if (this.ended) return;
    this.ended = true;
    clearTimeout(this.watch);
    void this.worker.terminate();
    this.onEnd(this);
    this.waiting.shift()?.reject(reason);
    for (const job of this.waiting.splice(0)) job.reject(new ThreadLost());
  }

  private begin(): void {
    const [job] = this.waiting;
    clearTimeout(this.watch);
    if (job === undefined) {
      this.worker.unref();
      return;
    }
    this.worker.ref();
    const late = () => this.end(new JobError(`it takes longer than ${job.limitMs} ms`));
    this.watch = setTimeout(late, job.limitMs).unref();
  }

  private onReply(reply: Reply): void {
    if (reply.fatal) {
      this.end(new JobError(reply.error));
      return;
    }
    const job = this.waiting.shift();
    this.begin();
    if (reply.error === undefined) job?.resolve(reply);
    else job?.reject(new JobError(reply.error));
  }
}
