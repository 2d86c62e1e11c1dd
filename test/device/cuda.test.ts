/**
 * The library on a GPU: the bundled model from Node, beside the CPU. Without a GPU, or without the library for it, every test
 * here is skipped and says why.
 */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { AbortError, DisposedError, devices, type GenerateRequest, Model, quantize, selftest } from '../../lib/index.js';
import { folderWith, nano, root } from '../helpers/files.js';

const cuda = devices().find(({ device }) => device === 'cuda');
if (!cuda?.available) console.log(`cuda: skipped here, ${cuda?.detail ?? 'this build knows no such device'}`);

const questions = ['What is asthma?', 'What are the symptoms of diabetes?', '头痛怎么办？', 'Fever is'];
const asked = (text: string): GenerateRequest => ({
  messages: [{ role: 'user', content: text }],
  temperature: 0,
  repetitionPenalty: 1,
  maxTokens: 96,
});

/** The first position where two answers differ; undefined when they are one another's whole or beginning. */
function firstDifference(a: readonly number[], b: readonly number[]): number | undefined {
  const at = a.findIndex((token, i) => i < b.length && token !== b[i]);
  return at < 0 ? undefined : at;
}

const lastRow = (logits: Float32Array, vocab: number) => logits.subarray(logits.length - vocab);

/** Answers may part only where the CPU's two best tokens are closer than the devices' logits are there. */
async function expectSameUpToNearTies(host: Model, gpu: Model, text: string): Promise<void> {
  const [onHost, onGpu] = await Promise.all([host.generate(asked(text)).result, gpu.generate(asked(text)).result]);
  expect(onGpu.tokens.length).toBeGreaterThan(4);
  const at = firstDifference(onHost.tokens, onGpu.tokens);
  if (at === undefined) return;
  const prompt = host.tokenizer.encode(
    host.tokenizer.applyChatTemplate([{ role: 'user', content: text }], { addGenerationPrompt: true }),
  );
  const ids = Int32Array.from([...prompt, ...onHost.tokens.slice(0, at)]);
  const { vocabSize } = host.info;
  const [a, b] = [lastRow(await host.logits(ids), vocabSize), lastRow(await gpu.logits(ids), vocabSize)];
  const error = a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] ?? Number.NaN))), 0);
  const gap = Math.abs((a[onHost.tokens[at] as number] as number) - (a[onGpu.tokens[at] as number] as number));
  console.log(`${text} parts at token ${at}: ${gap.toFixed(4)} between the two best, logits differ by ${error.toFixed(4)}`);
  expect(gap).toBeLessThan(2 * error);
}

describe.skipIf(!cuda?.available)('the bundled model on a GPU', { timeout: 120_000 }, () => {
  test('is picked by auto, and says what it runs on', async () => {
    await using model = await Model.load(nano);
    const bfloat16 = { compute: 'bfloat16', kvCacheDtype: 'bfloat16', prefillAttention: 'bfloat16' };
    expect(model.info.device).toMatchObject({ name: 'cuda', ...bfloat16 });
    expect(model.info.device.reason).not.toBe('');
    expect(model.info.memory.weightBytes).toBeGreaterThan(1e6);
  });

  test('float32: the very tokens of the CPU', async () => {
    await using host = await Model.load(nano, { device: 'cpu', compute: 'float32' });
    await using gpu = await Model.load(nano, { device: 'cuda', compute: 'float32' });
    for (const text of questions) {
      const [a, b] = await Promise.all([host.generate(asked(text)).result, gpu.generate(asked(text)).result]);
      expect(b.tokens).toEqual(a.tokens);
      expect(b.text).toBe(a.text);
    }
  });

  test.each(['float32', 'bfloat16'] as const)('passes its self-test in %s', async (compute) => {
    await using model = await Model.load(nano, { device: 'cuda', compute });
    const report = await selftest(model);
    expect(report.problems.concat(...report.cases.map(({ problems }) => problems))).toEqual([]);
    expect(report.passed).toBe(true);
  });

  test('bfloat16: the text of the CPU, up to near ties', async () => {
    await using host = await Model.load(nano, { device: 'cpu' });
    await using gpu = await Model.load(nano, { device: 'cuda' });
    for (const text of questions) await expectSameUpToNearTies(host, gpu, text);
  });

  test('FP8 weights: the text of the CPU, up to near ties', async () => {
    const folder = join(folderWith({}), 'fp8');
    await quantize(nano, folder, { format: 'fp8' });
    await using host = await Model.load(folder, { device: 'cpu' });
    await using gpu = await Model.load(folder, { device: 'cuda' });
    for (const text of questions) await expectSameUpToNearTies(host, gpu, text);
  });

  test('streams, stops when nobody reads on, and goes on with others', async () => {
    await using model = await Model.load(nano, { device: 'cuda' });
    const generation = model.generate({ ...asked('What is asthma?'), ignoreEos: true, maxTokens: 400 });
    const texts: string[] = [];
    for await (const chunk of generation) {
      texts.push(chunk.text);
      if (texts.length === 5) break;
    }
    const left = await generation.result;
    expect(left.finishReason).toBe('abort');
    expect(left.text.startsWith(texts.join(''))).toBe(true);
    const controller = new AbortController();
    const request = { ...asked('Fever is'), ignoreEos: true, maxTokens: 400, signal: controller.signal };
    const reading = (async () => {
      for await (const _ of model.generate(request)) controller.abort();
    })();
    await expect(reading).rejects.toThrow(AbortError);
    expect((await model.generate(asked('Fever is')).result).tokens.length).toBeGreaterThan(0);
    expect(model.failure).toBeUndefined();
    expect(model.stats().heldPages).toBe(0);
  });

  test('a batch answers as its requests do alone; deterministic, to the last bit of the log-probabilities', async () => {
    await using model = await Model.load(nano, { device: 'cuda', deterministic: true, prefixCache: false });
    expect(model.info.device.kernels).toContain('deterministic');
    const requests = Array.from({ length: 12 }, (_, i) => ({ ...asked(questions[i % 4] as string), logprobs: 2 }));
    const together = await model.generateBatch(requests);
    for (const [i, request] of requests.slice(0, 4).entries()) {
      const alone = await model.generate(request).result;
      expect(together[i]?.tokens).toEqual(alone.tokens);
      expect(together[i]?.logprobs).toEqual(alone.logprobs);
      expect(together[i + 8]?.logprobs).toEqual(alone.logprobs);
    }
  });

  test('drafts change no token', async () => {
    await using plain = await Model.load(nano, { device: 'cuda', compute: 'float32' });
    const draft = join(root, 'models/nano-eagle3');
    for (const speculative of [{ method: 'ngram' }, { method: 'mtp' }, { method: 'eagle3' }] as const) {
      const options = speculative.method === 'eagle3' ? { draft, speculative } : { speculative };
      await using drafting = await Model.load(nano, { device: 'cuda', compute: 'float32', ...options });
      for (const text of questions) {
        const [a, b] = await Promise.all([plain.generate(asked(text)).result, drafting.generate(asked(text)).result]);
        expect(b.tokens).toEqual(a.tokens);
      }
      expect(drafting.stats().draftedTokens).toBeGreaterThan(0);
    }
  });

  test('memory comes back, also from a model that is disposed while it answers', async () => {
    for (let i = 0; i < 5; i++) {
      const model = await Model.load(nano, { device: 'cuda' });
      const running = model.generate({ ...asked('Fever is'), ignoreEos: true, maxTokens: 400 });
      if (i % 2 === 1) for await (const _ of running) break;
      const ended = running.result.catch((error: unknown) => error);
      await model.dispose();
      await model.dispose();
      const end = await ended;
      if (i % 2 === 0) expect(end).toBeInstanceOf(DisposedError);
      expect(() => model.stats()).toThrow(DisposedError);
    }
  });

  test('prompts in FP8: near the answers of BF16, and not with deterministic', async () => {
    await using plain = await Model.load(nano, { device: 'cuda' });
    expect(plain.info.limits.maxBatchedTokens).toBe(8192);
    if (plain.info.device.kernels !== 'sm_90') {
      await expect(Model.load(nano, { device: 'cuda', prefillAttention: 'fp8' })).rejects.toThrow(
        'prefill attention in fp8 asked for',
      );
      return;
    }
    await using fp8 = await Model.load(nano, { device: 'cuda', prefillAttention: 'fp8' });
    expect(fp8.info.device).toMatchObject({ kvCacheDtype: 'bfloat16', prefillAttention: 'fp8' });
    const ids = Int32Array.from(plain.tokenizer.encode('The symptoms of asthma and of other diseases of the lung. '.repeat(8)));
    const [a, b] = [await plain.logits(ids), await fp8.logits(ids)];
    const difference = Math.sqrt(a.reduce((sum, value, i) => sum + (value - (b[i] ?? Number.NaN)) ** 2, 0));
    const size = Math.sqrt(a.reduce((sum, value) => sum + value ** 2, 0));
    expect(difference / size).toBeGreaterThan(0);
    expect(difference / size).toBeLessThan(0.08);
    await expect(Model.load(nano, { device: 'cuda', prefillAttention: 'fp8', deterministic: true })).rejects.toThrow(
      'deterministic with prompts in FP8',
    );
  });
});
