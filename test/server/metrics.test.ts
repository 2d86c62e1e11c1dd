/** Figures at /metrics and lines in the log say what happened. */
import { beforeAll, expect, test } from 'vitest';
import { MODEL, type Serving, serving } from './serving.js';

let server: Serving;
beforeAll(async () => {
  server = await serving();
});

/** Samples by name and labels; those of the model's name are left out. */
async function figures(): Promise<Map<string, number>> {
  const text = await (await fetch(`${server.url}/metrics`)).text();
  const samples = text.split('\n').filter((line) => line.startsWith('sigmoe:'));
  expect(samples.every((line) => line.includes(`model_name="${MODEL}"`))).toBe(true);
  return new Map(
    samples.map((line) => {
      const [name = '', value] = line
        .replace(/,?model_name="[^"]*"/, '')
        .replace('{}', '')
        .split(' ');
      return [name.slice('sigmoe:'.length), Number(value)];
    }),
  );
}

test('requests, tokens and times are counted', async () => {
  const messages = [{ role: 'user' as const, content: 'Breathing, pulse and temperature were measured again. '.repeat(12) }];
  const base = { model: MODEL, messages, max_tokens: 6, ...{ ignore_eos: true } };
  const whole = await server.client.chat.completions.create(base);
  const stream = await server.client.chat.completions.create({ ...base, n: 2, stream: true });
  for await (const _ of stream);
  await server.client.chat.completions.create({ ...base, model: 'other' }).catch(() => undefined);

  await expect.poll(() => server.model.stats().running).toBe(0);
  const prompt = whole.usage?.prompt_tokens ?? 0;
  const now = await figures();
  const expected: Record<string, number> = {
    prompt_tokens_total: 3 * prompt,
    generation_tokens_total: 18,
    'request_success_total{finished_reason="length"}': 3,
    'http_requests_total{route="/v1/chat/completions",status="200"}': 2,
    'http_requests_total{route="/v1/chat/completions",status="404"}': 1,
    time_to_first_token_seconds_count: 3,
    inter_token_latency_seconds_count: now.get('inter_token_latency_seconds_count') ?? 0,
    time_per_output_token_seconds_count: 3,
    e2e_request_latency_seconds_count: 3,
    request_queue_time_seconds_count: 3,
    request_prefill_time_seconds_count: 3,
    request_decode_time_seconds_count: 3,
    request_inference_time_seconds_count: 3,
    request_prompt_tokens_sum: 3 * prompt,
    request_generation_tokens_sum: 18,
    request_params_n_sum: 3,
    request_params_max_tokens_sum: 12,
    num_requests_running: 0,
    num_requests_waiting: 0,
    kv_cache_usage_perc: 0,
    num_preemptions_total: 0,
    prefix_cache_queries_total: 3 * prompt,
  };
  expect(Object.fromEntries(Object.keys(expected).map((name) => [name, now.get(name)]))).toEqual(expected);
  expect(now.get('inter_token_latency_seconds_count')).toBeGreaterThan(0);
  expect(now.get('inter_token_latency_seconds_count')).toBeLessThanOrEqual(15); // tokens that arrive together are one gap
  expect(now.get('prefix_cache_hits_total')).toBeGreaterThanOrEqual(256);
  expect(now.get('engine_steps_total')).toBeGreaterThan(0);
  const settings = [...now.keys()].find((name) => name.startsWith('cache_config_info'));
  expect(settings).toContain(`cache_dtype="${server.model.info.device.kvCacheDtype}"`);
  const [total, first] = [now.get('e2e_request_latency_seconds_sum') ?? 0, now.get('time_to_first_token_seconds_sum') ?? 0];
  expect(total).toBeGreaterThan(first);

  const lines = server
    .logged()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  const asked = lines.filter(({ route }) => route === '/v1/chat/completions');
  expect(asked.map(({ status, completionTokens }) => [status, completionTokens])).toEqual([
    [200, 6],
    [200, 12],
    [404, undefined],
  ]);
  expect(asked[0]).toMatchObject({
    promptTokens: prompt,
    finish: 'length',
    level: 'info',
    time: expect.stringMatching(/^\d{4}-/),
  });
  expect(asked[1]).toMatchObject({ stream: true, finish: 'length,length' });
  expect(asked[2]).toMatchObject({ error: 'model_not_found' });
});
