/** Speculation through the library: the same answers, the counts that say what it saved, and what is refused. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type GenerateRequest, InvalidArgumentError, type LoadOptions, Model, NotFoundError } from '../../lib/index.js';
import { nano, root } from '../helpers/files.js';

const draft = join(root, 'models/nano-eagle3');
const requests = [
  { prompt: 'What is asthma?', temperature: 0, maxTokens: 60 },
  { prompt: '头痛怎么办?', temperature: 0.7, topP: 0.9, repetitionPenalty: 1.1, seed: 7, maxTokens: 60 },
  { prompt: 'Fever is', temperature: 0.7, minTokens: 20, logprobs: 2, seed: 8, maxTokens: 60 },
  { prompt: 'one two three one two three one two', temperature: 0, stop: 'z', maxTokens: 40 },
];

const answersOf = async (model: Model) => {
  const results = await model.generateBatch(requests);
  return results.map(({ text, tokens, finishReason, logprobs }) => ({ text, tokens, finishReason, logprobs }));
};

describe.each<[string, LoadOptions]>([
  ['eagle3', { draft, speculative: { maxDepth: 4, adaptive: false } }],
  ['mtp', { speculative: { method: 'mtp', maxDepth: 4, adaptive: false } }],
  ['ngram', { speculative: { method: 'ngram', maxDepth: 4, adaptive: false } }],
])('%s', (method, options) => {
  test('answers as without it, and says what it drafted', async () => {
    await using plain = await Model.load(nano);
    await using model = await Model.load(nano, options);
    expect(plain.info.speculation).toBeNull();
    expect(model.info.speculation).toEqual({ method, maxDepth: 4 });
    expect(await answersOf(model)).toEqual(await answersOf(plain));

    const { usage } = await model.generate({ ...requests[0], prompt: 'What is asthma? What is' }).result;
    expect(usage.acceptedTokens).toBeLessThanOrEqual(usage.draftedTokens);
    const off = await model.generate({ prompt: 'What is asthma?', temperature: 0, maxTokens: 20, speculative: false }).result;
    expect(off.usage).toMatchObject({ draftedTokens: 0, acceptedTokens: 0 });

    const stats = model.stats();
    expect(stats.draftedTokens).toBeGreaterThan(0);
    expect(stats.acceptedTokens).toBeGreaterThan(0);
    expect(stats.acceptedPerPosition).toHaveLength(4);
    expect(stats.acceptedPerPosition.reduce((sum, n) => sum + n, 0)).toBe(stats.acceptedTokens);
    expect(stats.steps).toBeLessThan(plain.stats().steps * 2);
    expect(stats.heldPages).toBe(0);
    expect(plain.stats()).toMatchObject({ draftChecks: 0, draftedTokens: 0, acceptedPerPosition: [] });
  });
});

test('a draft alone is enough', async () => {
  await using model = await Model.load(nano, { draft });
  expect(model.info.speculation).toEqual({ method: 'eagle3', maxDepth: 5 });
});

test('structured output and thinking budgets are the same with drafts, and drafts come true in them', async () => {
  const schema = {
    type: 'object',
    properties: { complaint: { type: 'string', maxLength: 40 }, age: { type: 'integer' }, urgent: { type: 'boolean' } },
    required: ['complaint', 'age', 'urgent'],
    additionalProperties: false,
  };
  const forms: GenerateRequest[] = [
    { prompt: 'Record:', structured: { json: schema }, temperature: 0.7, seed: 3, maxTokens: 120 },
    { prompt: 'Dose:', structured: { regex: '([0-9]{3}, ){12}[0-9]{3}' }, temperature: 0, maxTokens: 80 },
    { prompt: 'Answer:', structured: { choice: ['yes, certainly', 'no, not at all'] }, temperature: 1, seed: 4, maxTokens: 30 },
    { prompt: 'What is asthma?', structured: { grammar: 'root ::= [^.]+ "."' }, temperature: 0, maxTokens: 60 },
    { prompt: 'What is asthma? <think>', thinkingTokenBudget: 7, temperature: 0, maxTokens: 40 },
    // Reasoning without a form, and then a form.
    {
      prompt: 'one two three one two three <think>',
      thinkingTokenBudget: 60,
      minTokens: 60,
      structured: { choice: ['yes, certainly', 'no, not at all'] },
      temperature: 0,
      maxTokens: 100,
    },
  ];
  const answers = async (model: Model) => {
    const results = await model.generateBatch(forms);
    const texts = results.map(({ text, reasoning, tokens, finishReason }) => ({ text, reasoning, tokens, finishReason }));
    return { texts, accepted: results.map(({ usage }) => usage.acceptedTokens) };
  };
  await using plain = await Model.load(nano);
  const expected = await answers(plain);
  expect(expected.texts[1]?.text).toMatch(/^([0-9]{3}, ){12}[0-9]{3}$/);
  expect(expected.texts[5]?.reasoning).not.toBe('');
  expect(expected.texts[5]?.text).toMatch(/^(yes, certainly|no, not at all)$/);
  let accepted = 0;
  let acceptedBeforeForm = 0;
  for (const options of [
    { draft },
    { speculative: { method: 'mtp' } },
    { speculative: { method: 'ngram' } },
  ] as LoadOptions[]) {
    const speculative = { maxDepth: 4, adaptive: false, ...options.speculative };
    await using model = await Model.load(nano, { ...options, speculative });
    const found = await answers(model);
    expect(found.texts).toEqual(expected.texts);
    accepted += found.accepted.slice(0, 4).reduce((sum, n) => sum + n, 0);
    acceptedBeforeForm += found.accepted[5] ?? 0;
    expect(model.stats().heldPages).toBe(0);
  }
  expect(accepted).toBeGreaterThan(10);
  expect(acceptedBeforeForm).toBeGreaterThan(30); // more than three forms have tokens
});

test('what cannot be is refused by name', async () => {
  const load = (options: unknown) => Model.load(nano, options as LoadOptions);
  await expect(load({ draft: join(root, 'lib') })).rejects.toThrow(NotFoundError);
  await expect(load({ draft: '' })).rejects.toThrow(/draft: expected the path/);
  await expect(load({ draft, speculative: false })).rejects.toThrow(/the draft folder would not be used/);
  await expect(load({ speculative: { method: 'eagle3' } })).rejects.toThrow(/needs a draft folder/);
  await expect(load({ speculative: { method: 'medusa' } })).rejects.toThrow(/speculative.method: expected one of auto/);
  await expect(load({ speculative: { maxDepth: 16 } })).rejects.toThrow(InvalidArgumentError);
  await expect(load({ speculative: { depth: 3 } })).rejects.toThrow(/unknown option "depth"/);
  await expect(load({ speculative: true })).rejects.toThrow(/speculative: expected an object, found a boolean/);
});
