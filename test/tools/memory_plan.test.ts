import { describe, expect, test } from 'vitest';
import { InvalidArgumentError, type ModelInfo, memoryPlan } from '../../lib/index.js';

describe('the memory plan', () => {
  // The published model in FP8; of its facts those that a plan asks for.
  const flash = {
    context: 131_072,
    vocabSize: 157_184,
    shape: { hiddenSize: 4096, heads: 32, kvHeads: 4, headDim: 128, experts: 256, activeExperts: 8 },
    memory: { weightBytes: 104.2e9, kvBytesPerToken: 65_536 },
  } as unknown as ModelInfo;

  test('of a whole context in chunks of 8,192 tokens: weights, cache and workspace, within one H200', () => {
    const plan = memoryPlan(flash, { maxBatchedTokens: 8192, maxNumSeqs: 1 });
    expect(plan).toMatchObject({ context: 131_072, maxBatchedTokens: 8192, weightBytes: 104.2e9 });
    expect(plan.kvBytes).toBe(8_589_934_592);
    // Per token of a chunk: residual, norm, nine slots and what is packed, qkv, queries, attention, router; and logits.
    expect(plan.workspaceBytes).toBe(4 * (8192 * (13 * 4096 + 2 * 40 * 128 + 2 * 256) + 3 * 157_184));
    expect(plan.totalBytes).toBe(plan.weightBytes + plan.kvBytes + plan.workspaceBytes);
    expect(plan.totalBytes).toBeLessThan(141e9);
  });

  test('grows with context, chunk and sequences, and each defaults to what a load takes', () => {
    const plan = memoryPlan(flash);
    expect(plan).toMatchObject({ context: 131_072, maxBatchedTokens: 512 });
    expect(memoryPlan(flash, { context: 65_536 }).kvBytes * 2).toBe(plan.kvBytes);
    expect(memoryPlan(flash, { maxBatchedTokens: 1024 }).workspaceBytes).toBeGreaterThan(plan.workspaceBytes);
    expect(memoryPlan(flash, { maxNumSeqs: 64 }).workspaceBytes).toBeGreaterThan(plan.workspaceBytes);
  });

  test('names what is no number of tokens', () => {
    expect(() => memoryPlan(flash, { context: 0 })).toThrow(InvalidArgumentError);
    expect(() => memoryPlan(flash, { maxBatchedTokens: 1.5 })).toThrow('maxBatchedTokens is 1.5');
  });
});
