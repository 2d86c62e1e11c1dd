/** What a request may ask beyond sampling, on the real engine: caches, priorities, deadlines, budgets, restrictions, forms. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BusyError, InvalidArgumentError, Model } from '../../lib/index.js';
import { nano } from '../helpers/files.js';

let model: Model;
beforeAll(async () => {
  model = await Model.load(nano);
});
afterAll(() => model.dispose());

const messages = [{ role: 'user' as const, content: '头痛怎么办? What helps against a headache?' }];
const greedy = { temperature: 0, repetitionPenalty: 1 };

/** Tokens nobody else in this file uses, so that the prefix cache knows them only from the same test. */
function promptOf(length: number, family: number): number[] {
  return Array.from({ length }, (_, i) => 300 + ((i * 31 + family * 1009) % 4000));
}

describe('prefix cache', () => {
  test('a repeated prompt computes 128 tokens or fewer, and its answer is the same', async () => {
    const request = { ...greedy, prompt: promptOf(1500, 1), maxTokens: 20 };
    const cold = await model.generate(request).result;
    const before = model.stats();
    const warm = await model.generate(request).result;
    const after = model.stats();
    expect(warm.tokens).toEqual(cold.tokens);
    expect(cold.usage.cachedTokens).toBe(0);
    expect(warm.usage.cachedTokens).toBe(11 * 128);
    expect(after.prefillTokens - before.prefillTokens).toBe(1500 - 11 * 128);
    expect(after.prefixHitTokens - before.prefixHitTokens).toBe(11 * 128);
    expect(after).toMatchObject({ heldPages: 0 });
    expect(after.freePages + after.cachedPages).toBe(after.totalPages);
  });

  test('salts do not share, and a continued conversation finds its beginning', async () => {
    const prompt = promptOf(300, 2);
    const run = (more: number[], cacheSalt?: string) =>
      model.generate({ ...greedy, prompt: [...prompt, ...more], maxTokens: 4, cacheSalt }).result;
    expect((await run([], 'a')).usage.cachedTokens).toBe(0);
    expect((await run([], 'b')).usage.cachedTokens).toBe(0);
    expect((await run([])).usage.cachedTokens).toBe(0);
    expect((await run([5, 6, 7], 'a')).usage.cachedTokens).toBe(256);
    await expect(run([], '')).rejects.toThrow(/cacheSalt: expected a string of at least one character/);
  });

  test('it can be turned off', async () => {
    await using plain = await Model.load(nano, { prefixCache: false });
    const request = { ...greedy, prompt: promptOf(300, 3), maxTokens: 2 };
    await plain.generate(request).result;
    expect((await plain.generate(request).result).usage.cachedTokens).toBe(0);
    expect(plain.stats().cachedPages).toBe(0);
  });
});

describe('the same answer', () => {
  test('alone, among 64, from a warm and a cold cache, before and after preemption', { timeout: 300_000 }, async () => {
    const requests = Array.from({ length: 64 }, (_, i) => ({
      ...greedy,
      prompt: promptOf(40 + 17 * (i % 16), 20 + (i % 5)),
      maxTokens: 100 + (i % 7),
      ignoreEos: true,
    }));
    await using cold = await Model.load(nano, { prefixCache: false });
    const alone: number[][] = [];
    for (const request of requests.slice(0, 16)) alone.push((await cold.generate(request).result).tokens);
    // Room for a tenth of what 64 sequences hold: they put each other back again and again.
    await using tight = await Model.load(nano, { maxNumSeqs: 64, kvCacheTokens: 2048 });
    for (const round of ['cold', 'warm']) {
      const among = await tight.generateBatch(requests);
      for (const [i, tokens] of alone.entries()) expect([round, i, among[i]?.tokens]).toEqual([round, i, tokens]);
    }
    const { preemptions, prefixHitTokens } = tight.stats();
    expect(preemptions).toBeGreaterThan(0);
    expect(prefixHitTokens).toBeGreaterThan(0);
  });
});

describe('order and limits', () => {
  test('priorities: the lower number is answered first', async () => {
    await using one = await Model.load(nano, { maxNumSeqs: 1 });
    const order: string[] = [];
    const run = (name: string, priority: number) =>
      one.generate({ ...greedy, messages, maxTokens: 30, ignoreEos: true, priority }).result.then(() => order.push(name));
    await Promise.all([run('low', 7), run('default', 0), run('urgent', -3)]);
    expect(order).toEqual(['urgent', 'default', 'low']);
  });

  test('a full queue says so, and takes requests again', async () => {
    await using small = await Model.load(nano, { maxNumSeqs: 1, maxWaiting: 2 });
    const request = { ...greedy, messages, maxTokens: 200, ignoreEos: true };
    const results = await Promise.allSettled(Array.from({ length: 8 }, () => small.generate(request).result));
    const refused = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []));
    expect(refused.length).toBeGreaterThanOrEqual(4);
    for (const error of refused) expect(error).toBeInstanceOf(BusyError);
    expect((await small.generate({ ...request, maxTokens: 3 }).result).tokens).toHaveLength(3);
  });

  test('a deadline ends the output with what there is, also in the queue', async () => {
    await using one = await Model.load(nano, { maxNumSeqs: 1 });
    const request = { ...greedy, messages, ignoreEos: true };
    const long = one.generate({ ...request, deadlineMs: 400 });
    const queued = await one.generate({ ...request, deadlineMs: 1 }).result;
    expect(queued).toMatchObject({ finishReason: 'deadline', tokens: [] });
    const result = await long.result;
    expect(result.finishReason).toBe('deadline');
    expect(result.tokens.length).toBeGreaterThan(0);
    expect(one.stats()).toMatchObject({ running: 0, waiting: 0, heldPages: 0 });
  });

  test('the start of a generation tells its prompt, cache hits and wait', async () => {
    const generation = model.generate({ ...greedy, messages, maxTokens: 2 });
    const start = await generation.started;
    const result = await generation.result;
    expect(start.promptTokens).toHaveLength(result.usage.promptTokens);
    expect(start.cachedTokens).toBe(result.usage.cachedTokens);
    expect(start.queueMs).toBeGreaterThanOrEqual(0);
    expect(start.queueMs).toBe(result.timings.queueMs);
    await expect(model.generate({ messages: [] }).started).rejects.toBeInstanceOf(InvalidArgumentError);
  });

  test('memoryUtilization bounds the KV cache, down to one context', async () => {
    await using roomy = await Model.load(nano, { memoryUtilization: 0.5 });
    await using tight = await Model.load(nano, { memoryUtilization: 1e-6 });
    expect(roomy.info.limits.kvCacheTokens).toBe(model.info.limits.kvCacheTokens);
    expect(tight.info.limits.kvCacheTokens).toBe(tight.info.context);
    await expect(Model.load(nano, { memoryUtilization: 0 })).rejects.toThrow(/above 0, at most 1, found 0/);
  });

  test('truncatePromptTokens keeps the end of the prompt', async () => {
    const prompt = promptOf(50, 4);
    const cut = await model.generate({ ...greedy, prompt, truncatePromptTokens: 20, maxTokens: 10 }).result;
    const end = await model.generate({ ...greedy, prompt: prompt.slice(-20), maxTokens: 10 }).result;
    expect(cut.usage.promptTokens).toBe(20);
    expect(cut.tokens).toEqual(end.tokens);
  });
});

describe('what may be generated', () => {
  test('allowedTokenIds', async () => {
    const allowed = [100, 200, 300];
    const result = await model.generate({ messages, allowedTokenIds: allowed, maxTokens: 30, temperature: 2 }).result;
    expect(result.finishReason).toBe('length');
    expect(result.tokens.filter((id) => !allowed.includes(id))).toEqual([]);
    await expect(model.generate({ messages, allowedTokenIds: [] }).result).rejects.toThrow(/allowedTokenIds/);
  });

  test('badWords, of one token and of several', async () => {
    const plain = await model.generate({ ...greedy, messages, maxTokens: 60, ignoreEos: true }).result;
    const words = plain.text.match(/[A-Za-z]{4,}/g) ?? [];
    expect(words.length).toBeGreaterThan(2);
    const badWords = [...new Set(words)].slice(0, 5);
    const without = await model.generate({ ...greedy, messages, maxTokens: 60, ignoreEos: true, badWords }).result;
    expect(without.tokens).not.toEqual(plain.tokens);
    const spelled = badWords.flatMap((word) => [model.tokenizer.encode(word), model.tokenizer.encode(` ${word}`)]);
    for (const ids of spelled) expect(` ${without.tokens.join(' ')} `).not.toContain(` ${ids.join(' ')} `);
  });

  test('promptLogprobs are those of the logits', async () => {
    const prompt = promptOf(140, 5);
    const request = { ...greedy, prompt, maxTokens: 1, promptLogprobs: 2 };
    const { promptLogprobs } = await model.generate(request).result;
    expect((await model.generate(request).result).promptLogprobs).toEqual(promptLogprobs); // not from the prefix cache
    const logits = await model.logits(prompt);
    const { vocabSize } = model.info;
    expect(promptLogprobs).toHaveLength(prompt.length);
    expect(promptLogprobs?.[0]).toBeNull();
    for (let i = 1; i < prompt.length; i++) {
      const row = logits.subarray((i - 1) * vocabSize, i * vocabSize);
      const highest = row.reduce((a, b) => Math.max(a, b));
      const total = row.reduce((sum, x) => sum + Math.exp(x - highest), 0);
      const scored = promptLogprobs?.[i];
      expect(scored?.id).toBe(prompt[i]);
      expect(scored?.logprob).toBeCloseTo((row[prompt[i] ?? 0] ?? 0) - highest - Math.log(total), 3);
      expect(scored?.top).toHaveLength(2);
      expect(scored?.top[0]?.logprob).toBeCloseTo(-Math.log(total), 3);
    }
  });

  test('a thinking budget forces the end of the reasoning', async () => {
    const prompt = [...promptOf(10, 6), ...model.tokenizer.encode('<think>', { special: true })];
    const request = { ...greedy, prompt, maxTokens: 60, ignoreEos: true };
    const free = await model.generate(request).result;
    expect(free.usage.reasoningTokens).toBe(60); // the bundled model never closes it by itself
    for (const thinkingTokenBudget of [0, 1, 12]) {
      const result = await model.generate({ ...request, thinkingTokenBudget }).result;
      const close =
        model.tokenizer.idOf('</think>') === undefined ? model.tokenizer.encode('</think>', { special: false }).length : 1;
      expect(result.usage.reasoningTokens).toBe(thinkingTokenBudget + close);
      expect(result.tokens.slice(0, thinkingTokenBudget)).toEqual(free.tokens.slice(0, thinkingTokenBudget));
      expect(result.text).not.toBe('');
      expect(result.text).not.toContain('think>');
    }
  });
});

describe('structured output', () => {
  // The last form has no end of its own: at the limit what there is must be a beginning of it.
  test.each([
    ['choice', { choice: ['yes', 'no', '也许'] }, /^(yes|no|也许)$/, /^never$/],
    ['regex', { regex: '[A-Z]{3}-[0-9]{4}' }, /^[A-Z]{3}-\d{4}$/, /^never$/],
    ['grammar', { grammar: 'root ::= ("ab" | "cd")+ "." ' }, /^(ab|cd)+\.$/, /^(ab|cd)+[ac]?$/],
  ] as const)('%s', async (_, structured, whole, cut) => {
    for (const seed of [1, 2, 3]) {
      const result = await model.generate({ messages, structured, seed, temperature: 1.5, maxTokens: 400 }).result;
      expect(result.text).toMatch(result.finishReason === 'stop' ? whole : cut);
    }
  });

  test('json of a schema, beside plain generations', async () => {
    const schema = {
      type: 'object',
      properties: { drug: { enum: ['aspirin', 'ibuprofen'] }, doses: { type: 'integer', minimum: 1, maximum: 9 } },
      required: ['drug', 'doses'],
      additionalProperties: false,
    };
    const plain = { ...greedy, messages, maxTokens: 40 };
    const alone = (await model.generate(plain).result).tokens;
    const [shaped, among] = await model.generateBatch([
      { messages, structured: { json: schema }, seed: 4, temperature: 1, maxTokens: 200 },
      plain,
    ]);
    expect(JSON.parse(shaped?.text ?? '')).toEqual({
      drug: expect.stringMatching(/^(aspirin|ibuprofen)$/),
      doses: expect.any(Number),
    });
    expect(among?.tokens).toEqual(alone);
  });

  test('a form that is none is refused; an aborted one leaves nothing behind', async () => {
    const run = (structured: object) => model.generate({ messages, structured: structured as { regex: string } }).result;
    await expect(run({})).rejects.toThrow(/structured: expected exactly one of/);
    await expect(run({ regex: 'a', choice: ['b'] })).rejects.toThrow(/found regex, choice/);
    await expect(run({ regex: '(' })).rejects.toBeInstanceOf(InvalidArgumentError);
    await expect(run({ jsn: {} })).rejects.toThrow(/unknown option "jsn"/);
    const controller = new AbortController();
    const generation = model.generate({ messages, structured: { jsonObject: true }, signal: controller.signal });
    for await (const chunk of generation) {
      expect(chunk.tokens.length).toBeGreaterThan(0);
      break;
    }
    controller.abort();
    await model.generate({ ...greedy, messages, maxTokens: 1 }).result;
    expect(model.stats()).toMatchObject({ running: 0, waiting: 0, heldPages: 0 });
  });
});
