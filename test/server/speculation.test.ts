/** What the server says of drafted tokens: in the usage of an answer and in the metrics. The answer is the plain one. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Model } from '../../lib/index.js';
import { buildApp } from '../../lib/server/index.js';
import { nano } from '../helpers/files.js';

let model: Model;
let app: ReturnType<typeof buildApp>;
beforeAll(async () => {
  model = await Model.load(nano, { draft: `${nano}-eagle3`, speculative: { maxDepth: 2, adaptive: false } });
  app = buildApp(model, { modelName: 'nano' });
});
afterAll(async () => {
  await app.close();
  await model.dispose();
});

async function answer(stream: boolean) {
  const payload = {
    prompt: 'Asthma is',
    max_tokens: 60,
    temperature: 0,
    ignore_eos: true,
    stream,
    ...(stream && { stream_options: { include_usage: true } }),
  };
  const { body } = await app.inject({ method: 'POST', url: '/v1/completions', payload });
  const last = stream ? body.split('\n\n').at(-3)?.slice('data: '.length) : body;
  return JSON.parse(last ?? '');
}

test('usage and metrics count drafts; the text is that of plain decoding', async () => {
  await using plain = await Model.load(nano);
  const wanted = await plain.generate({ prompt: 'Asthma is', maxTokens: 60, temperature: 0, ignoreEos: true }).result;
  const whole = await answer(false);
  expect(whole.choices[0].text).toBe(wanted.text);
  const { accepted_prediction_tokens: accepted, rejected_prediction_tokens: rejected } = whole.usage.completion_tokens_details;
  expect(accepted).toBeGreaterThan(0);
  expect(accepted).toBeLessThan(60);
  expect(rejected).toBeGreaterThan(0);
  expect((await answer(true)).usage.completion_tokens_details).toEqual(whole.usage.completion_tokens_details);

  const page = (await app.inject('/metrics')).body;
  const value = (name: string) => {
    const lines = page.split('\n').filter((line) => line.startsWith(`sigmoe:spec_decode_num_${name}`));
    return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
  };
  expect(value('draft_tokens_total')).toBe(2 * (accepted + rejected));
  expect(value('accepted_tokens_total')).toBe(2 * accepted);
  expect(value('accepted_tokens_per_pos_total')).toBe(2 * accepted);
  expect(value('drafts_total')).toBeGreaterThan(0);
  expect(value('drafts_total')).toBeLessThanOrEqual(value('draft_tokens_total'));
});
