/** What benchmarks ask: prompts of exactly the length asked for, as the tokenizer of the model counts it. */
import { expect, test } from 'vitest';
import { bundledRequests, fileRequests, randomRequests } from '../../lib/bench/dataset.js';
import { Tokenizer } from '../../lib/index.js';
import { nano } from '../helpers/files.js';

const tokenizer = await Tokenizer.load(nano);
const plain = { inputLen: 100, outputLen: 20, rangeRatio: 0, prefixLen: 0 };

test('random prompts have exactly their tokens, and the same seed gives the same ones', () => {
  const requests = randomRequests(tokenizer, 20, plain, 1);
  expect(requests.map(({ prompt }) => tokenizer.encode(prompt).length)).toEqual(Array(20).fill(100));
  expect(requests.every((request) => request.promptTokens === 100 && request.outputTokens === 20)).toBe(true);
  expect(new Set(requests.map(({ prompt }) => prompt)).size).toBe(20);
  expect(randomRequests(tokenizer, 20, plain, 1)).toEqual(requests);
  expect(randomRequests(tokenizer, 20, plain, 2)).not.toEqual(requests);
});

test('lengths vary as asked for; a shared prefix is shared', () => {
  const requests = randomRequests(tokenizer, 60, { ...plain, rangeRatio: 0.5, prefixLen: 30 }, 1);
  const lengths = requests.map(({ promptTokens = 0 }) => promptTokens - 30);
  expect(Math.min(...lengths)).toBeGreaterThanOrEqual(50);
  expect(Math.max(...lengths)).toBeLessThanOrEqual(150);
  expect(new Set(lengths).size).toBeGreaterThan(20);
  const encoded = requests.map(({ prompt }) => tokenizer.encode(prompt));
  expect(encoded.map((ids) => ids.length - 30)).toEqual(lengths);
  expect(new Set(encoded.map((ids) => ids.slice(0, 30).join())).size).toBe(1);
});

test('bundled prompts repeat; a file gives its own, and says which line is wrong', () => {
  const bundled = bundledRequests(tokenizer, 50, 64);
  expect(bundled).toHaveLength(50);
  expect(bundled[49]?.promptTokens).toBe(tokenizer.encode(bundled[49]?.prompt ?? '').length);
  const text = '{"prompt": "a"}\n\n{"prompt": "b", "output_tokens": 3}\n';
  expect(fileRequests(text, 'f', undefined, 3, 9)).toEqual([
    { prompt: 'a', promptTokens: undefined, outputTokens: 9 },
    { prompt: 'b', promptTokens: undefined, outputTokens: 3 },
    { prompt: 'a', promptTokens: undefined, outputTokens: 9 },
  ]);
  for (const wrong of ['nonsense', '{"prompt": 3}', '{"prompt": ""}', '{"prompt": "a", "output_tokens": 0}', 'null']) {
    expect(() => fileRequests(`{"prompt": "a"}\n${wrong}`, 'f', undefined, 2, 9)).toThrow(/f: line 2: expected/);
  }
  expect(() => fileRequests('\n', 'f', undefined, 1, 9)).toThrow(/empty/);
});
