import type { ChatOptions, Message } from './types.js';
export declare class TokenDecoder { push(ids: number | readonly number[]): string; flush(): string }
export declare class Tokenizer {
  /** Reads tokenizer.json and what stands beside it; needs neither weights nor the addon. */
  static load(folder: string, options?: { chatTemplate?: string | undefined }): Promise<Tokenizer>;
  readonly vocabSize: number;
  readonly specialIds: ReadonlySet<number>;
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  /** Ids that end a turn: generation_config eos, tokenizer eos, `<|role_end|>`. */
  readonly stopIds: readonly number[];
  readonly chatTemplateSource: string;
  encode(text: string, options?: { special?: boolean | undefined }): number[];
  /** As `encode`, but long texts are encoded in a worker thread. */
  encodeAsync(text: string, options?: { special?: boolean | undefined }): Promise<number[]>;
  decode(ids: Iterable<number>, options?: { skipSpecial?: boolean | undefined }): string;
  createDecoder(options?: { skipSpecial?: boolean | undefined }): TokenDecoder;
  idOf(token: string): number | undefined;
  bytesOf(id: number): Uint8Array;
  applyChatTemplate(messages: readonly Message[] | string, options?: ChatOptions): string;
  encodeChat(messages: readonly Message[] | string, options?: ChatOptions): Promise<number[]>;
}
