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
