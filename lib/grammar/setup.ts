/** What a grammar thread starts from: where the library is, and the vocabulary in memory that all threads share. */
import { createRequire } from 'node:module';
import type { Tokenizer } from '../tokenizer.js';
import type { WorkerSetup } from './worker.js';

export interface SetupOptions {
  tokenizer: Tokenizer;
  /** Of the model: ids beyond the tokenizer's are never allowed. */
  vocabSize: number;
  stopIds: readonly number[];
  /** What the grammars of one thread may take. Default 768 MiB. */
  memoryBytes?: number;
}

const MEMORY_BYTES = 768 * 2 ** 20;

export function setupOf({ tokenizer, vocabSize, stopIds, memoryBytes }: SetupOptions): WorkerSetup {
  const libraryPath = createRequire(import.meta.url).resolve('@mlc-ai/web-xgrammar');
  const count = Math.min(tokenizer.vocabSize, vocabSize);
  // Tokens without text are allowed by no grammar: special ones, but for the tags of calls, and bytes that UTF-8 does not
  // have, which the library lets through.
  const calls = ['<tool_call>', '</tool_call>'].map((tag) => tokenizer.idOf(tag));
  const isPlain = (id: number) => !tokenizer.specialIds.has(id) || calls.includes(id);
  const isText = (id: number) => isPlain(id) && !tokenizer.bytesOf(id).some(isNoUtf8);
  const bytesOf = (id: number) => (isText(id) ? tokenizer.bytesOf(id) : undefined);
  const offsets = new Uint32Array(new SharedArrayBuffer(4 * (count + 1)));
  for (let id = 0; id < count; id++) offsets[id + 1] = (offsets[id] ?? 0) + (bytesOf(id)?.length ?? 0);
  const bytes = new Uint8Array(new SharedArrayBuffer(offsets[count] ?? 0));
  for (let id = 0; id < count; id++) bytes.set(bytesOf(id) ?? [], offsets[id]);
  return { libraryPath, bytes, offsets, vocabSize, stopIds, memoryBytes: memoryBytes ?? MEMORY_BYTES };
}

function isNoUtf8(byte: number): boolean {
  return byte === 0xc0 || byte === 0xc1 || byte >= 0xf5;
}
