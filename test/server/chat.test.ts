/** /v1/chat/completions by the official client: every option, whole and streamed. */
import type OpenAI from 'openai';
import { beforeAll, describe, expect, test } from 'vitest';
import { MODEL, type Serving, serving } from './serving.js';

let server: Serving;
beforeAll(async () => {
  server = await serving();
});

type Params = OpenAI.ChatCompletionCreateParamsNonStreaming;
const question: Params = {
  model: MODEL,
  messages: [{ role: 'user', content: 'What helps against fever?' }],
  temperature: 0,
  max_tokens: 24,
};

/** Options of vLLM, which the client's types do not know. */
function ask(extra: Record<string, unknown> = {}): Promise<OpenAI.ChatCompletion> {
  return server.client.chat.completions.create({ ...question, ...extra } as Params);
}

async function stream(extra: Record<string, unknown> = {}): Promise<OpenAI.ChatCompletionChunk[]> {
  const params = { ...question, ...extra, stream: true } as OpenAI.ChatCompletionCreateParamsStreaming;
  const chunks: OpenAI.ChatCompletionChunk[] = [];
  for await (const chunk of await server.client.chat.completions.create(params)) chunks.push(chunk);
  return chunks;
}

const textOf = (chunks: OpenAI.ChatCompletionChunk[], index = 0): string =>
  chunks.flatMap(({ choices }) => choices.filter((c) => c.index === index).map(({ delta }) => delta.content ?? '')).join('');

describe('shape', () => {
  test('an answer', async () => {
    const answer = await ask();
    expect(answer.id).toMatch(/^chatcmpl-/);
    expect(answer).toMatchObject({ object: 'chat.completion', model: MODEL });
    expect(Math.abs(answer.created - Date.now() / 1000)).toBeLessThan(60);
    const [choice] = answer.choices;
    expect(choice?.message.role).toBe('assistant');
    expect(choice?.message.content?.length).toBeGreaterThan(0);
    expect(['stop', 'length']).toContain(choice?.finish_reason);
    const { usage } = answer;
    expect(usage?.completion_tokens).toBeGreaterThan(0);
    expect(usage?.total_tokens).toBe((usage?.prompt_tokens ?? 0) + (usage?.completion_tokens ?? 0));
    expect(usage?.prompt_tokens_details?.cached_tokens).toBeGreaterThanOrEqual(0);
  });

  test('a stream says the same, role first, reason after the text, usage last', async () => {
    const [whole, chunks] = [await ask(), await stream({ stream_options: { include_usage: true } })];
    expect(textOf(chunks)).toBe(whole.choices[0]?.message.content);
    expect(chunks[0]?.choices[0]?.delta).toEqual({ role: 'assistant', content: '' });
    expect(chunks.filter(({ choices }) => choices[0]?.finish_reason)).toHaveLength(1);
    expect(chunks.at(-2)?.choices[0]).toMatchObject({ delta: {}, finish_reason: whole.choices[0]?.finish_reason });
    expect(chunks.at(-1)?.choices).toEqual([]);
    expect(chunks.at(-1)?.usage).toMatchObject({ completion_tokens: whole.usage?.completion_tokens });
    expect(chunks.slice(0, -1).every(({ usage }) => usage === null)).toBe(true);
    expect(new Set(chunks.map(({ id, created }) => `${id} ${created}`)).size).toBe(1);
    expect(chunks.every(({ object }) => object === 'chat.completion.chunk')).toBe(true);
  });
});

describe('sampling', () => {
  test('a seed makes an answer again, and choices that differ', async () => {
    const wild = { temperature: 1.5, top_p: 1, top_k: -1, seed: 11, n: 3 };
    const [first, second, alone] = [await ask(wild), await ask(wild), await ask({ ...wild, n: 1 })];
    const texts = first.choices.map(({ message }) => message.content);
    expect(second.choices.map(({ message }) => message.content)).toEqual(texts);
    expect(alone.choices[0]?.message.content).toBe(texts[0]);
    expect(new Set(texts).size).toBe(3);
    expect(first.usage?.prompt_tokens).toBe(alone.usage?.prompt_tokens);
    const chunks = await stream(wild);
    expect([0, 1, 2].map((index) => textOf(chunks, index))).toEqual(texts);
  });

  test('every numeric option is taken', async () => {
    const all = {
      temperature: 0.6,
      top_p: 0.95,
      top_k: 20,
      min_p: 0.01,
      repetition_penalty: 1.05,
      presence_penalty: 0.1,
      frequency_penalty: 0.1,
      min_tokens: 2,
      priority: 3,
      cache_salt: 'ward 3',
      seed: -5,
      max_tokens: undefined,
      max_completion_tokens: 4,
      user: 'u',
      metadata: { a: 'b' },
      store: false,
      service_tier: 'auto',
      spaces_between_special_tokens: true,
      length_penalty: 1,
      use_beam_search: false,
      skip_special_tokens: true,
      reasoning_effort: 'low',
      stop: null,
    };
    expect((await ask(all)).usage?.completion_tokens).toBe(4);
  });

  test('stop strings, stop tokens, and what is said of them', async () => {
    const plain = (await ask()).choices[0]?.message.content ?? '';
    const word = plain.split(' ')[2] ?? '';
    const stopped = await ask({ stop: [word] });
    expect(stopped.choices[0]).toMatchObject({ finish_reason: 'stop', stop_reason: word });
    expect(stopped.choices[0]?.message.content).toBe(plain.slice(0, plain.indexOf(word)));
    const kept = await ask({ stop: word, include_stop_str_in_output: true });
    expect(kept.choices[0]?.message.content).toBe(plain.slice(0, plain.indexOf(word) + word.length));
    const { choices } = await ask({ return_token_ids: true });
    const ids = (choices[0] as unknown as { token_ids: number[] }).token_ids;
    const byToken = await ask({ stop_token_ids: [ids[3]] });
    expect(byToken.choices[0]).toMatchObject({ finish_reason: 'stop', stop_reason: ids[3] });
    expect(byToken.usage?.completion_tokens).toBe(ids.indexOf(ids[3] ?? -1) + 1);
  });

  test('ignore_eos goes on to max_tokens; min_tokens goes at least so far', async () => {
    expect((await ask({ ignore_eos: true, max_tokens: 120 })).usage?.completion_tokens).toBe(120);
    expect((await ask({ min_tokens: 60, max_tokens: 90 })).usage?.completion_tokens).toBeGreaterThanOrEqual(60);
  });

  test('logit_bias, allowed_token_ids and bad_words', async () => {
    const { choices } = await ask({ return_token_ids: true });
    const ids = (choices[0] as unknown as { token_ids: number[] }).token_ids;
    const banned = await ask({ logit_bias: { [String(ids[0])]: -100 }, return_token_ids: true });
    expect((banned.choices[0] as unknown as { token_ids: number[] }).token_ids[0]).not.toBe(ids[0]);
    const only = await ask({ allowed_token_ids: ids.slice(0, 2), return_token_ids: true, max_tokens: 6 });
    expect((only.choices[0] as unknown as { token_ids: number[] }).token_ids.every((id) => ids.slice(0, 2).includes(id))).toBe(
      true,
    );
    const word = (choices[0]?.message.content ?? '').split(' ')[1] ?? '';
    expect((await ask({ bad_words: [word] })).choices[0]?.message.content).not.toContain(` ${word}`);
  });
});

describe('what comes with the text', () => {
  test('log-probabilities', async () => {
    const answer = await ask({ logprobs: true, top_logprobs: 3, repetition_penalty: 1 });
    const entries = answer.choices[0]?.logprobs?.content ?? [];
    expect(entries).toHaveLength(answer.usage?.completion_tokens ?? 0);
    for (const { token, bytes, logprob, top_logprobs } of entries) {
      expect(Buffer.from(bytes ?? []).toString()).toBe(token);
      expect(top_logprobs).toHaveLength(3);
      expect(top_logprobs[0]?.logprob).toBeCloseTo(logprob, 5); // greedy takes the most likely
    }
    const chunks = await stream({ logprobs: true, top_logprobs: 3, repetition_penalty: 1 });
    const streamed = chunks.flatMap(({ choices }) => choices[0]?.logprobs?.content ?? []);
    expect(streamed.map(({ token }) => token)).toEqual(entries.map(({ token }) => token));
    const named = await ask({ logprobs: true, return_tokens_as_token_ids: true });
    expect(named.choices[0]?.logprobs?.content?.[0]?.token).toMatch(/^token_id:\d+$/);
  });

  test('log-probabilities of the prompt', async () => {
    const answer = (await ask({ prompt_logprobs: 2 })) as unknown as {
      prompt_logprobs: (object | null)[];
      usage: { prompt_tokens: number };
    };
    expect(answer.prompt_logprobs).toHaveLength(answer.usage.prompt_tokens);
    expect(answer.prompt_logprobs[0]).toBeNull();
    for (const entry of answer.prompt_logprobs.slice(1)) {
      const scores = Object.values(entry ?? {}) as { logprob: number; decoded_token: string }[];
      expect(scores.length).toBeGreaterThanOrEqual(2);
      expect(scores.every(({ logprob }) => logprob <= 0)).toBe(true);
    }
  });

  test('token ids of prompt and answer', async () => {
    const whole = (await ask({ return_token_ids: true })) as unknown as {
      prompt_token_ids: number[];
      choices: { token_ids: number[] }[];
    };
    const chunks = (await stream({ return_token_ids: true })) as unknown as (typeof whole)[];
    expect(chunks[0]?.prompt_token_ids).toEqual(whole.prompt_token_ids);
    expect(chunks.flatMap(({ choices }) => choices[0]?.token_ids ?? [])).toEqual(whole.choices[0]?.token_ids);
    const messages = [{ role: 'user', content: 'What helps against fever?' }];
    const response = await fetch(`${server.url}/tokenize`, { method: 'POST', body: JSON.stringify({ messages }) });
    expect(await response.json()).toMatchObject({ tokens: whole.prompt_token_ids, count: whole.prompt_token_ids.length });
  });

  test('usage with every chunk', async () => {
    const chunks = await stream({ stream_options: { include_usage: true, continuous_usage_stats: true } });
    const counts = chunks.map(({ usage }) => usage?.completion_tokens ?? -1);
    expect(counts[0]).toBe(0);
    expect(counts.every((count, i) => i === 0 || count >= (counts[i - 1] ?? 0))).toBe(true);
    expect(chunks.every(({ usage }) => (usage?.prompt_tokens ?? 0) > 0)).toBe(true);
  });

  test('a request id names the answer', async () => {
    expect((await ask({ request_id: 'visit-7' })).id).toBe('chatcmpl-visit-7');
    const answer = await server.client.chat.completions
      .create(question, { headers: { 'x-request-id': 'trace.1' } })
      .withResponse();
    expect(answer.response.headers.get('x-request-id')).toBe('trace.1');
    expect(answer.data.id).toBe('chatcmpl-trace.1');
  });
});

describe('prompt', () => {
  test('continues the last message', async () => {
    const messages = [...question.messages, { role: 'assistant', content: 'Drink plenty of' }];
    const [open, closed] = [
      await ask({ messages, continue_final_message: true, add_generation_prompt: false }),
      await ask({ messages }),
    ];
    expect(open.usage?.prompt_tokens).toBeLessThan(closed.usage?.prompt_tokens ?? 0);
    await expect(ask({ messages, continue_final_message: true, add_generation_prompt: true })).rejects.toMatchObject({
      status: 400,
    });
  });

  test('all roles, parts, calls and results', async () => {
    const call = { id: 'call_1', type: 'function', function: { name: 'pulse', arguments: '{"side": "left"}' } };
    const messages = [
      { role: 'developer', content: 'Be brief.' },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'What is my ' },
          { type: 'text', text: 'pulse?' },
        ],
      },
      { role: 'assistant', content: null, tool_calls: [call], refusal: null, reasoning_content: 'I should measure.' },
      { role: 'tool', tool_call_id: 'call_1', content: '72' },
    ];
    expect((await ask({ messages })).usage?.prompt_tokens).toBeGreaterThan(50);
  });

  test('truncate_prompt_tokens keeps the end', async () => {
    expect((await ask({ truncate_prompt_tokens: 5 })).usage?.prompt_tokens).toBe(5);
  });

  test('a prompt that came before is found in the cache', async () => {
    const messages = [{ role: 'user', content: 'Temperature, pulse and breathing were measured in the ward. '.repeat(20) }];
    const [cold, warm] = [await ask({ messages }), await ask({ messages })];
    expect(cold.usage?.prompt_tokens_details?.cached_tokens).toBe(0);
    expect(warm.usage?.prompt_tokens_details?.cached_tokens).toBeGreaterThanOrEqual(128);
    expect(warm.choices[0]?.message.content).toBe(cold.choices[0]?.message.content);
    expect((await ask({ messages, cache_salt: 'apart' })).usage?.prompt_tokens_details?.cached_tokens).toBe(0);
  });
});

describe('reasoning', () => {
  const thinking = {
    messages: [...question.messages, { role: 'assistant', content: '<think>\n' }],
    continue_final_message: true,
    add_generation_prompt: false,
    thinking_token_budget: 6,
    max_tokens: 30,
    ignore_eos: true,
  };
  type Thought = { reasoning?: string; reasoning_content?: string; content?: string };

  test('is apart from the answer, under both names, and ends at its budget', async () => {
    const answer = await ask(thinking);
    const message = answer.choices[0]?.message as Thought;
    expect(message.reasoning?.length).toBeGreaterThan(0);
    expect(message.reasoning_content).toBe(message.reasoning);
    expect(message.content?.length).toBeGreaterThan(0);
    const counted = answer.usage?.completion_tokens_details?.reasoning_tokens ?? 0;
    expect(counted).toBeGreaterThan(0);
    const tag = server.model.tokenizer.encode('</think>').length;
    expect(counted).toBeLessThanOrEqual(6 + tag);
    const deltas = (await stream(thinking)).flatMap(({ choices }) => choices.map(({ delta }) => delta as Thought));
    expect(deltas.map(({ reasoning }) => reasoning ?? '').join('')).toBe(message.reasoning);
    expect(deltas.map(({ content }) => content ?? '').join('')).toBe(message.content);
  });

  test('can be left out', async () => {
    const message = (await ask({ ...thinking, include_reasoning: false })).choices[0]?.message as Thought;
    expect(message).not.toHaveProperty('reasoning');
  });
});
