/** The demo model against its goldens, on float32 activations: logits, MTP logits, greedy text. */
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Model } from '../../lib/index.js';
import { type GreedyPrompt, golden, nano } from '../helpers/files.js';
import { readSafetensors } from '../helpers/safetensors.js';

const { prompts } = JSON.parse(readFileSync(golden('nano/greedy.json'), 'utf8')) as { prompts: GreedyPrompt[] };
const expected = readSafetensors(golden('nano/logits.safetensors'));

let model: Model;
beforeAll(async () => {
  model = await Model.load(nano, { compute: 'float32', mtp: true });
});
afterAll(() => model.dispose());

/** ||a - b|| / ||b|| */
function relativeError(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += ((a[i] ?? Number.NaN) - (b[i] ?? 0)) ** 2;
    norm += (b[i] ?? 0) ** 2;
  }
  return Math.sqrt(difference / norm);
}

const tensor = (name: string): Float32Array => expected.get(name) ?? expect.fail(`no golden tensor ${name}`);
const lastRow = (logits: Float32Array): Float32Array => logits.subarray(logits.length - model.info.vocabSize);

describe('golden nano', () => {
  test('there are eight prompts', () => expect(prompts.length).toBe(8));

  test.each([...prompts.keys()])('logits of prompt %i within 1e-4', async (i) => {
    const ids = prompts[i]?.prompt_ids ?? [];
    const logits = await model.logits(ids);
    expect(logits.length).toBe(ids.length * model.info.vocabSize);
    expect(relativeError(lastRow(logits), tensor(`${i}.prompt_logits_last`))).toBeLessThan(1e-4);
  });

  // Row t of the MTP layer reads token t + 1 too; the reference put token 0 behind the last.
  test.each([...prompts.keys()])('MTP logits of prompt %i within 1e-4', async (i) => {
    const ids = prompts[i]?.prompt_ids ?? [];
    const logits = await model.logits([...ids, 0], { mtp: true });
    const { vocabSize } = model.info;
    const row = logits.subarray((ids.length - 1) * vocabSize, ids.length * vocabSize);
    expect(relativeError(row, tensor(`${i}.mtp_logits_last`))).toBeLessThan(1e-4);
  });

  test.each([...prompts.keys()])('greedy continuation of prompt %i', async (i) => {
    const { question, text, prompt_ids, greedy_ids, greedy_text } = prompts[i] as GreedyPrompt;
    const neutral = { temperature: 0, repetitionPenalty: 1, maxTokens: greedy_ids.length };
    const result = await model.generate({ prompt: prompt_ids, ...neutral }).result;
    expect(result.tokens).toEqual(greedy_ids);
    expect(result.text).toBe(greedy_text);
    expect(result.usage.promptTokens).toBe(prompt_ids.length);
    expect((await model.generate({ prompt: text, ...neutral }).result).tokens).toEqual(greedy_ids);
    const messages = [{ role: 'user' as const, content: question }];
    expect((await model.generate({ messages, ...neutral }).result).tokens).toEqual(greedy_ids);
  });

  test('all prompts at once give the same', async () => {
    const requests = prompts.map(({ prompt_ids, greedy_ids }) => ({
      prompt: prompt_ids,
      temperature: 0,
      repetitionPenalty: 1,
      maxTokens: greedy_ids.length,
    }));
    const results = await model.generateBatch(requests);
    expect(results.map((result) => result.tokens)).toEqual(prompts.map((prompt) => prompt.greedy_ids));
  });
});
