/** Generations on the real engine: streams, seeds, stops, log-probabilities, aborts. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AbortError, type Chunk, DisposedError, Model, OutOfMemoryError } from '../../lib/index.js';
import { nano } from '../helpers/files.js';

let model: Model;
beforeAll(async () => {
  model = await Model.load(nano);
});
afterAll(() => model.dispose());

const messages = [{ role: 'user' as const, content: '头痛怎么办? What helps against a headache?' }];

describe('generation', () => {
  test('info says what was loaded and why this device', () => {
    expect(model.info).toMatchObject({
      path: nano,
      architecture: 'BailingMoeV2ForCausalLM',
      context: 2048,
      vocabSize: 6144,
      device: { name: 'cpu', compute: 'bfloat16', kvCacheDtype: 'bfloat16', prefillAttention: 'bfloat16' },
      shape: { hiddenSize: 256, layers: 6, experts: 16, activeExperts: 4 },
      chatTemplate: 'tokenizer_config.json',
    });
    expect(model.info.device.reason).not.toBe('');
    expect(model.info.parameters.total).toBeGreaterThan(14e6);
    expect(model.info.memory.kvBytes).toBeGreaterThan(0);
  });

  test('a stream adds up to its result, and whole characters only', async () => {
    const generation = model.generate({ messages, maxTokens: 80, seed: 3, logprobs: 1 });
    const chunks: Chunk[] = [];
    for await (const chunk of generation) chunks.push(chunk);
    const result = await generation.result;
    expect(chunks.length).toBeGreaterThan(10);
    expect(chunks.map((chunk) => chunk.text).join('')).toBe(result.text);
    expect(chunks.flatMap((chunk) => chunk.tokens)).toEqual(result.tokens);
    expect(chunks.flatMap((chunk) => chunk.logprobs ?? [])).toEqual(result.logprobs);
    expect(result.text).not.toBe('');
    expect(model.tokenizer.decode(result.tokens)).toBe(result.text);
  });

  test('a seed gives the same tokens alone, again and among others', async () => {
    const request = { messages, maxTokens: 40, temperature: 0.9, seed: 11 };
    const alone = (await model.generate(request).result).tokens;
    const again = (await model.generate(request).result).tokens;
    const others = Array.from({ length: 7 }, (_, i) => ({ ...request, seed: 100 + i, maxTokens: 10 + 5 * i }));
    const [among] = await model.generateBatch([request, ...others]);
    expect(again).toEqual(alone);
    expect(among?.tokens).toEqual(alone);
    const other = (await model.generate({ ...request, seed: 12 }).result).tokens;
    expect(other).not.toEqual(alone);
  });

  test('generation_config.json is the default, the request goes before it', async () => {
    const asFile = { temperature: 0.6, topP: 0.95, topK: 20, repetitionPenalty: 1.05 };
    const [given, implied, greedy, greedyAgain] = await model.generateBatch([
      { messages, maxTokens: 30, seed: 5, ...asFile },
      { messages, maxTokens: 30, seed: 5 },
      { messages, maxTokens: 30, seed: 5, temperature: 0 },
      { messages, maxTokens: 30, seed: 6, temperature: 0 },
    ]);
    expect(implied?.tokens).toEqual(given?.tokens);
    expect(greedyAgain?.tokens).toEqual(greedy?.tokens);
  });

  test('stop strings, stop tokens, minTokens, ignoreEos', async () => {
    const request = { messages, maxTokens: 60, temperature: 0, ignoreEos: true };
    const whole = await model.generate(request).result;
    expect(whole).toMatchObject({ finishReason: 'length', usage: { completionTokens: 60 } });
    const stop = whole.text.slice(20, 26);
    const cut = await model.generate({ ...request, stop }).result;
    expect(cut).toMatchObject({ finishReason: 'stop', stopReason: stop });
    expect(cut.text).toBe(whole.text.slice(0, whole.text.indexOf(stop)));
    const kept = await model.generate({ ...request, stop, includeStopInOutput: true }).result;
    expect(kept.text).toBe(cut.text + stop);

    const token = whole.tokens[10] as number;
    const first = whole.tokens.indexOf(token);
    const byToken = await model.generate({ ...request, stopTokenIds: [token] }).result;
    expect(byToken).toMatchObject({ finishReason: 'stop', stopReason: token, tokens: whole.tokens.slice(0, first + 1) });
    const later = await model.generate({ ...request, stopTokenIds: [token], minTokens: 30 }).result;
    expect(later.tokens.length).toBeGreaterThanOrEqual(30);
  });

  test('log-probabilities are those of the logits', async () => {
    const exact = await Model.load(nano, { compute: 'float32' });
    expect(exact.info.device).toMatchObject({ compute: 'float32', kvCacheDtype: 'float32', prefillAttention: 'float32' });
    const prompt = exact.tokenizer.encode('<role>HUMAN</role>What is asthma?<|role_end|><role>ASSISTANT</role>');
    const neutral = { temperature: 1, topP: 1, topK: 0, repetitionPenalty: 1 };
    const { tokens, logprobs = [] } = await exact.generate({ prompt, maxTokens: 6, seed: 1, logprobs: 5, ...neutral }).result;
    const logits = await exact.logits([...prompt, ...tokens]);
    const { vocabSize } = exact.info;
    for (const [i, entry] of logprobs.entries()) {
      const row = logits.subarray((prompt.length - 1 + i) * vocabSize, (prompt.length + i) * vocabSize);
      const max = row.reduce((a, b) => Math.max(a, b));
      const logSum = max + Math.log(row.reduce((sum, value) => sum + Math.exp(value - max), 0));
      expect(entry.logprob).toBeCloseTo((row[entry.id] as number) - logSum, 3);
      const best = [...row.keys()].sort((a, b) => (row[b] as number) - (row[a] as number)).slice(0, 5);
      expect(entry.top.map((token) => token.id)).toEqual(best);
      for (const token of entry.top) expect(token.logprob).toBeCloseTo((row[token.id] as number) - logSum, 3);
    }
    expect(logprobs.length).toBe(tokens.length);
    await exact.dispose();
  });

  test('logitBias and penalties act', async () => {
    const request = { messages, maxTokens: 12, temperature: 0, ignoreEos: true };
    const [first] = (await model.generate(request).result).tokens as [number];
    const banned = await model.generate({ ...request, logitBias: { [first]: -100 } }).result;
    expect(banned.tokens).not.toContain(first);
    const forced = await model.generate({ ...request, logitBias: new Map([[40, 100]]), repetitionPenalty: 1 }).result;
    expect(new Set(forced.tokens)).toEqual(new Set([40]));
    const spread = await model.generate({ ...request, logitBias: { 40: 30 }, repetitionPenalty: 1, frequencyPenalty: 2 })
      .result;
    expect(new Set(spread.tokens).size).toBeGreaterThanOrEqual(1);
  });

  test('the context ends an answer', async () => {
    const small = await Model.load(nano, { maxModelLen: 64 });
    const result = await small.generate({ prompt: Array(60).fill(32), ignoreEos: true }).result;
    expect(result).toMatchObject({ finishReason: 'length', usage: { promptTokens: 60 } });
    expect(result.usage.totalTokens).toBeLessThanOrEqual(64);
    await expect(small.generate({ prompt: Array(64).fill(32) }).result).rejects.toThrow('the context of 64');
    await small.dispose();
  });
});

describe('ends', () => {
  test('abort while it streams, and the engine forgets the request', async () => {
    const controller = new AbortController();
    const generation = model.generate({ messages, ignoreEos: true, signal: controller.signal });
    const read = async () => {
      for await (const chunk of generation) if (chunk.text !== '') controller.abort('enough');
    };
    await expect(read()).rejects.toThrow(AbortError);
    await expect(generation.result).rejects.toMatchObject({ cause: 'enough' });
    while (model.stats().running > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  });

  test('leaving the loop', async () => {
    const generation = model.generate({ messages, ignoreEos: true });
    for await (const _ of generation) break;
    expect(await generation.result).toMatchObject({ finishReason: 'abort' });
  });

  test('dispose while generating; a second model goes on', async () => {
    const other = await Model.load(nano);
    const [ended, going] = [
      other.generate({ messages, ignoreEos: true }),
      model.generate({ messages, maxTokens: 40, ignoreEos: true }),
    ];
    for await (const _ of ended) break;
    const running = other.generate({ messages, ignoreEos: true });
    await running[Symbol.asyncIterator]().next();
    await Promise.all([other.dispose(), other.dispose()]);
    await expect(running.result).rejects.toThrow(DisposedError);
    await expect(other.generate({ messages }).result).rejects.toThrow(DisposedError);
    expect((await going.result).usage.completionTokens).toBe(40);
  });

  test('a load that is aborted, and one that asks for too much', async () => {
    const controller = new AbortController();
    const loading = Model.load(nano, { signal: controller.signal, onProgress: () => controller.abort() });
    setTimeout(() => controller.abort(), 1);
    await expect(loading).rejects.toThrow(AbortError);
    const huge = Model.load(nano, { kvCacheTokens: 2 ** 31 - 1 });
    await expect(huge).rejects.toThrow(OutOfMemoryError);
  });
});
