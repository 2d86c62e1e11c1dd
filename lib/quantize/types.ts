/** What quantising takes and gives back. */

export type QuantizeFormat = 'fp8' | 'int8';

export interface QuantizeOptions {
  /**
   * `fp8` (default): E4M3 in blocks of 128 x 128, the format the family is published in. `int8`: one scale per output channel, in
   * the layout of compressed-tensors ("int-quantized").
   */
  format?: QuantizeFormat | undefined;
  /** 0 (default): the cores this process may use. */
  threads?: number | undefined;
  onProgress?: ((progress: QuantizeProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface QuantizeProgress {
  /** Of the source checkpoint. */
  bytesDone: number;
  bytesTotal: number;
  shardsDone: number;
  shardsTotal: number;
}

/** Relative errors, ||stored - original|| / ||original||, of the tensors of a kind. */
export interface KindError {
  /** `mlp.experts.*.gate_proj` */
  kind: string;
  tensors: number;
  mean: number;
  worst: number;
  worstTensor: string;
}

export interface QuantizeReport {
  from: string;
  to: string;
  format: QuantizeFormat;
  /** The checkpoint had this format already: its files were copied. */
  unchanged: boolean;
  sourceBytes: number;
  bytes: number;
  /** Shards that an earlier, interrupted run had made; they were verified and kept. */
  keptShards: number;
  shards: { file: string; bytes: number; sha256: string }[];
  errors: KindError[];
}
