/** What a model takes of a device's memory for a context and a step size, before anything is loaded. */
import { InvalidArgumentError } from './errors.js';
import type { ModelInfo } from './types.js';

export interface MemoryPlanOptions {
  /** Tokens of KV cache, over all sequences. Default: the context of the model. */
  context?: number | undefined;
  /**
   * Tokens in one step: prompts are read in chunks of at most this many. Default 512, as in a load that is not on CUDA; there it
   * is 8,192 where memory allows.
   */
  maxBatchedTokens?: number | undefined;
  /** Sequences in one step. Default 32, as in a load. */
  maxNumSeqs?: number | undefined;
}

export interface MemoryPlan {
  context: number;
  maxBatchedTokens: number;
  weightBytes: number;
  kvBytes: number;
  /** Estimated: activations and logits of a step. */
  workspaceBytes: number;
  totalBytes: number;
}

/** What a step takes where nothing is said: csrc/engine/memory_plan.cpp. */
export const STEP_TOKENS = 512;
const CUDA_STEP_TOKENS = 8192;
export const STEP_SEQUENCES = 32;

export function memoryPlan(info: ModelInfo, options: MemoryPlanOptions = {}): MemoryPlan {
  const { context = info.context, maxBatchedTokens = STEP_TOKENS, maxNumSeqs = STEP_SEQUENCES } = options;
  for (const [name, value] of Object.entries({ context, maxBatchedTokens, maxNumSeqs })) {
    if (Number.isSafeInteger(value) && value > 0) continue;
    throw new InvalidArgumentError(name, `${name} is ${value}, not a whole number above 0`);
  }
  const { weightBytes, kvBytesPerToken } = info.memory;
  const kvBytes = context * kvBytesPerToken;
  const workspaceBytes = workspaceOf(info, maxBatchedTokens, maxNumSeqs);
  const totalBytes = weightBytes + kvBytes + workspaceBytes;
  return { context, maxBatchedTokens, weightBytes, kvBytes, workspaceBytes, totalBytes };
}

/** Workspaces that a step takes with what the backend keeps beside its own: csrc/engine/memory_plan.cpp. */
const WITH_SCRATCH = 3;

/** The step that a load chooses on a device which has so many bytes left beside weights and KV cache. */
export function chosenStepTokens(info: ModelInfo, device: string, spareBytes: number): number {
  let tokens = device === 'cuda' ? CUDA_STEP_TOKENS : STEP_TOKENS;
  while (tokens > STEP_TOKENS && WITH_SCRATCH * workspaceOf(info, tokens, STEP_SEQUENCES) > spareBytes) tokens /= 2;
  return Math.min(tokens, STEP_SEQUENCES * info.context);
}

/**
 * Buffers of a step, float32: what attention, router and experts hand on for each token, and logits and penalty counts for each
 * sequence.
 */
export function workspaceOf({ shape, vocabSize }: ModelInfo, stepTokens: number, stepSequences: number): number {
  const { hiddenSize, heads, kvHeads, headDim, experts, activeExperts } = shape;
  const perToken = (activeExperts + 5) * hiddenSize + 2 * (heads + 2 * kvHeads) * headDim + 2 * experts;
  return 4 * (stepTokens * perToken + 3 * stepSequences * vocabSize);
}
