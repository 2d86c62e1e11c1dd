import type { Generation } from './generate.js';
import type { Tokenizer } from './tokenizer.js';
import type {
  BatchOptions,
  BenchOptions,
  DeviceStatus,
  GenerateRequest,
  GenerateResult,
  LoadOptions,
  LogitsOptions,
  ModelInfo,
  ModelStats,
} from './types.js';
export declare class Model {
  static load(path: string, options?: LoadOptions): Promise<Model>;
  readonly info: ModelInfo;
  readonly tokenizer: Tokenizer;
  readonly disposed: boolean;
  generate(request: GenerateRequest): Generation;
  generateBatch(requests: readonly GenerateRequest[], options?: BatchOptions): Promise<GenerateResult[]>;
  /** Float32Array [T, vocab], row-major. */
  logits(ids: readonly number[] | Int32Array, options?: LogitsOptions): Promise<Float32Array>;
  stats(): ModelStats;
  dispose(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}
/** Reads config.json and tensor headers only; no weights are loaded. */
export declare function inspect(path: string): Promise<ModelInfo>;
export declare function devices(): DeviceStatus[];
/** Options and result are those of csrc/engine/bench.h. */
export declare function bench(options: Record<string, unknown>, hooks?: BenchOptions): Promise<unknown>;
export declare function nativeVersion(): string;
