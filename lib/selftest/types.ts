/** What a self-test records of a checkpoint, and what it finds. */

export const RECORDING_FORMAT = 'sigmoe-selftest-1';

/** The scores of one position that were recorded: the best tokens and some fixed ones. */
export interface RecordedScores {
  ids: number[];
  logits: number[];
}

export interface RecordedCase {
  question: string;
  /** Token ids of the rendered conversation. */
  prompt: number[];
  /** The greedy continuation, in float32. */
  tokens: number[];
  /** One for each of `tokens`: the scores it was chosen by. */
  scores: RecordedScores[];
}

/** Known prompts and what a checkpoint makes of them in float32: `selftest.json` of a model folder. */
export interface SelftestRecording {
  format: typeof RECORDING_FORMAT;
  /** Of the weights; `fingerprint()` says of what. */
  fingerprint: string;
  weights: string;
  recordedBy: { version: string; device: string; kernels: string };
  /** How far BF16 products of the recording machine were off; null where it has none. */
  bfloat16: {
    kernels: string;
    medianError: number;
    worstError: number;
    beyondBound: number;
    /**
     * The worst that one other choice of a router does where its two candidates are closer than BF16 rounds, by trying them all
     * (test/native/test_selftest_ties.cpp); a single BF16 run meets only some. Absent: not measured.
     */
    nearTieError?: number;
  } | null;
  cases: RecordedCase[];
}

export interface SelftestCaseReport {
  question: string;
  passed: boolean;
  tokens: number;
  /** Of the tokens, how many came out as recorded before the first that did not. */
  sameTokens: number;
  /** Relative errors of the recorded scores, by position. */
  medianError: number;
  worstError: number;
  problems: string[];
}

export interface SelftestReport {
  passed: boolean;
  model: string;
  device: string;
  kernels: string;
  compute: string;
  /** `exact`: float32 with a float32 KV cache. `reduced`: anything narrower. */
  rule: 'exact' | 'reduced';
  /** Largest relative error that a position may have; a few may exceed it under `reduced`. */
  bound: number;
  cases: SelftestCaseReport[];
  /** What is wrong with the whole rather than with one case. */
  problems: string[];
}
