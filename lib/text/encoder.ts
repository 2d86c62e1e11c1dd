/**
 * Text to ids. Added tokens are cut out here; what lies between is plain text for the tokenizer package, which is given
 * no added tokens and so cannot make any. Long texts go to a worker thread, because the package needs about a second for
 * a megabyte and the event loop must not wait for it.
 */
import { createRequire } from 'node:module';
import { Worker } from 'node:worker_threads';
import * as library from '@huggingface/tokenizers';
import { CheckpointError, InternalError } from '../errors.js';
import type { Fields } from '../folder.js';

/** Plain text, or the id of an added token. */
export type Segment = string | number;

/** Texts of more characters than this, about 20 ms of work, are encoded in the worker. */
export const WORKER_CHARACTERS = 16_384;
const WORKER_IDLE_MS = 30_000;

interface PlainTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
}
interface Library {
  Tokenizer: new (json: Fields, config: Fields) => PlainTokenizer;
}

export class Encoder {
  private readonly tokenizer: PlainTokenizer;
  private worker: EncoderWorker | undefined;

  constructor(
    path: string,
    private readonly plain: Fields,
  ) {
    try {
      this.tokenizer = new (library as unknown as Library).Tokenizer(plain, {});
      this.tokenizer.encode('a 1', { add_special_tokens: false });
    } catch (cause) {
      throw new CheckpointError(`${path}: the tokenizer cannot be built: ${(cause as Error).message}`, '', { cause });
    }
  }

  encode(segments: readonly Segment[]): number[] {
    return join(
      segments,
      texts(segments).map((text) => this.tokenizer.encode(text, { add_special_tokens: false }).ids),
    );
  }

  async encodeAsync(segments: readonly Segment[]): Promise<number[]> {
    const pieces = texts(segments);
    if (pieces.reduce((sum, text) => sum + text.length, 0) <= WORKER_CHARACTERS) return this.encode(segments);
    this.worker ??= new EncoderWorker(this.plain, (ended) => {
      if (this.worker === ended) this.worker = undefined;
    });
    return join(segments, await this.worker.encode(pieces));
  }
}

function texts(segments: readonly Segment[]): string[] {
  return segments.filter((segment) => typeof segment === 'string');
}

function join(segments: readonly Segment[], encoded: readonly Iterable<number>[]): number[] {
  const ids: number[] = [];
  let i = 0;
  for (const segment of segments) {
    if (typeof segment === 'number') ids.push(segment);
    else for (const id of encoded[i++] ?? []) ids.push(id);
  }
  return ids;
}

interface Reply {
  ids?: Int32Array[];
  error?: string;
}

/** One thread, made for the first long text and ended when none has come for a while. It keeps no process alive. */
class EncoderWorker {
  private readonly thread: Worker;
  private readonly waiting: { resolve(ids: Int32Array[]): void; reject(error: Error): void }[] = [];
  private idle: NodeJS.Timeout | undefined;

  constructor(
    plain: Fields,
    private readonly onEnd: (ended: EncoderWorker) => void,
  ) {
    const libraryPath = createRequire(import.meta.url).resolve('@huggingface/tokenizers');
    // The process's own flags, such as --input-type=module, are not meant for the thread's source.
    const options = { eval: true, execArgv: [], workerData: { libraryPath, plain } };
    this.thread = new Worker(`(${workerMain})()`, options);
    this.thread.unref();
    this.thread.on('message', ({ ids, error }: Reply) => {
      const job = this.waiting.shift();
      if (ids !== undefined) job?.resolve(ids);
      else job?.reject(new InternalError(`the tokenizer failed: ${error}`));
      if (this.waiting.length === 0) this.rest();
    });
    this.thread.on('error', (cause) =>
      this.end(new InternalError(`the tokenizer thread failed: ${cause.message}`, '', { cause })),
    );
    this.thread.on('exit', () => this.end(new InternalError('the tokenizer thread ended')));
  }

  encode(pieces: readonly string[]): Promise<Int32Array[]> {
    clearTimeout(this.idle);
    this.thread.ref();
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject });
      this.thread.postMessage(pieces);
    });
  }

  private rest(): void {
    this.thread.unref();
    this.idle = setTimeout(() => {
      this.onEnd(this);
      void this.thread.terminate();
    }, WORKER_IDLE_MS).unref();
  }

  private end(error: Error): void {
    clearTimeout(this.idle);
    this.onEnd(this);
    for (const job of this.waiting.splice(0)) job.reject(error);
  }
}

/** Runs in the worker from its source text, so it may name nothing outside itself. */
function workerMain(): void {
  const { parentPort, workerData } = require('node:worker_threads') as typeof import('node:worker_threads');
  const { libraryPath, plain } = workerData as { libraryPath: string; plain: Fields };
  const { Tokenizer } = require(libraryPath) as Library;
  const tokenizer = new Tokenizer(plain, {});
  parentPort?.on('message', (pieces: string[]) => {
    let reply: Reply;
    try {
      reply = { ids: pieces.map((text) => Int32Array.from(tokenizer.encode(text, { add_special_tokens: false }).ids)) };
    } catch (error) {
      reply = { error: String(error) };
    }
    parentPort?.postMessage(reply);
  });
}
