import type { Chunk, GenerateResult } from './types.js';
export declare class Generation implements AsyncIterable<Chunk> {
  /** Settles when the output ends, whether or not anyone iterates. An aborted signal rejects it with AbortError. */
  readonly result: Promise<GenerateResult>;
  /** Ends the output now; `result` resolves with finishReason `abort`. */
  stop(): void;
  [Symbol.asyncIterator](): AsyncIterator<Chunk, void, undefined>;
}
