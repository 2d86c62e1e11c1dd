/** /v1/completions, /v1/models, /tokenize and /detokenize. */
import type OpenAI from 'openai';
import { beforeAll, describe, expect, test } from 'vitest';
import { MODEL, type Serving, serving } from './serving.js';

let server: Serving;
beforeAll(async () => {
  server = await serving();
});

type Params = OpenAI.CompletionCreateParamsNonStreaming;
const base: Params = { model: MODEL, prompt: 'A fever is', temperature: 0, max_tokens: 12 };

const ask = (extra: Record<string, unknown> = {}): Promise<OpenAI.Completion> =>
  server.client.completions.create({ ...base, ...extra } as Params);

async function stream(extra: Record<string, unknown> = {}): Promise<OpenAI.Completion[]> {
  const chunks: OpenAI.Completion[] = [];
  const params = { ...base, ...extra, stream: true } as OpenAI.CompletionCreateParamsStreaming;
  for await (const chunk of await server.client.completions.create(params)) chunks.push(chunk);
  return chunks;
}

const post = async (path: string, body: unknown): Promise<{ status: number; body: Record<string, unknown> }> => {
  const response = await fetch(server.url + path, { method: 'POST', body: JSON.stringify(body) });
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
};

describe('completions', () => {
  test('an answer, and the same streamed', async () => {
    const whole = await ask();
    expect(whole).toMatchObject({ object: 'text_completion', model: MODEL });
    expect(whole.id).toMatch(/^cmpl-/);
    const chunks = await stream({ stream_options: { include_usage: true } });
    expect(chunks.map(({ choices }) => choices[0]?.text ?? '').join('')).toBe(whole.choices[0]?.text);
    expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe(whole.choices[0]?.finish_reason);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: whole.usage?.completion_tokens } });
  });

  test('16 tokens unless asked otherwise', async () => {
    expect((await ask({ max_tokens: undefined, ignore_eos: true })).usage?.completion_tokens).toBe(16);
  });

  test('text and ids, one prompt and several, each with its choices', async () => {
    const { tokenizer } = server.model;
    const ids = tokenizer.encode('A fever is');
    const [text, byIds, several] = [
      await ask(),
      await ask({ prompt: ids }),
      await ask({ prompt: ['A fever is', 'Pain'], n: 2 }),
    ];
    expect(byIds.choices[0]?.text).toBe(text.choices[0]?.text);
    expect(several.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    expect(several.choices[0]?.text).toBe(text.choices[0]?.text);
    expect(several.choices[3]?.text).toBe(several.choices[2]?.text); // greedy choices are alike
    const lists = await ask({ prompt: [ids, tokenizer.encode('Pain')], n: 2 });
    expect(lists.choices.map((choice) => choice.text)).toEqual(several.choices.map((choice) => choice.text));
    expect(several.usage?.prompt_tokens).toBe(ids.length + tokenizer.encode('Pain').length);
  });

  test('thinking stays in the text, as it was generated', async () => {
    const { choices, usage } = await ask({ prompt: 'Is it serious?<think>\n', thinking_token_budget: 4, max_tokens: 20 });
    expect(choices[0]?.text).toContain('</think>');
    expect(usage?.completion_tokens_details?.reasoning_tokens).toBeGreaterThan(0);
  });

  test('echo', async () => {
    const plain = await ask();
    expect((await ask({ echo: true })).choices[0]?.text).toBe(`A fever is${plain.choices[0]?.text}`);
    expect((await stream({ echo: true })).map(({ choices }) => choices[0]?.text ?? '').join('')).toBe(
      `A fever is${plain.choices[0]?.text}`,
    );
    const only = await ask({ echo: true, max_tokens: 0, logprobs: 2 });
    expect(only.choices[0]).toMatchObject({ text: 'A fever is', finish_reason: 'length' });
    expect(only.usage?.completion_tokens).toBe(0);
    expect(only.choices[0]?.logprobs?.token_logprobs?.[0]).toBeNull();
    expect(only.choices[0]?.logprobs?.tokens?.join('')).toBe('A fever is');
  });

  test('log-probabilities with offsets into the text', async () => {
    const { choices } = await ask({ logprobs: 2, echo: true, repetition_penalty: 1 });
    const { tokens = [], text_offset = [], token_logprobs = [], top_logprobs = [] } = choices[0]?.logprobs ?? {};
    const text = choices[0]?.text ?? '';
    for (const [i, token] of tokens.entries()) expect(text.startsWith(token, text_offset[i])).toBe(true);
    expect(token_logprobs.slice(1).every((logprob) => logprob !== null && logprob <= 0)).toBe(true);
    expect(Object.keys(top_logprobs[1] ?? {}).length).toBeGreaterThanOrEqual(2);
    const chunks = await stream({ logprobs: 2, repetition_penalty: 1 });
    const streamed = chunks.flatMap((chunk) => chunk.choices[0]?.logprobs?.tokens ?? []);
    expect(streamed).toEqual(tokens.slice(-streamed.length));
  });

  test.each<[string, Record<string, unknown>, string]>([
    ['no prompt', { prompt: undefined }, 'prompt'],
    ['an empty prompt', { prompt: [] }, 'prompt'],
    ['an id beyond the vocabulary', { prompt: [1, 999_999] }, 'prompt'],
    ['a prompt longer than the context', { prompt: 'pain '.repeat(3000) }, 'prompt'],
    ['max_tokens 0 alone', { max_tokens: 0 }, 'max_tokens'],
    ['a suffix', { suffix: 'x' }, 'suffix'],
    ['best_of', { best_of: 3 }, 'best_of'],
    ['messages', { messages: [] }, 'messages'],
    ['too many log-probabilities', { logprobs: 50 }, 'logprobs'],
  ])('%s is refused', async (_name, extra, param) => {
    await expect(ask(extra)).rejects.toMatchObject({ status: 400, param });
  });
});

describe('models', () => {
  test('are listed with what clients read', async () => {
    const { data } = await server.client.models.list();
    expect(data).toMatchObject([{ id: MODEL, object: 'model', max_model_len: 2048, default_system_prompt: null }]);
    expect(await server.client.models.retrieve(MODEL)).toMatchObject({ id: MODEL });
    await expect(server.client.models.retrieve('other')).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
    await expect(ask({ model: 'other' })).rejects.toMatchObject({ status: 404, code: 'model_not_found', param: 'model' });
  });
});

describe('tokens', () => {
  test('there and back', async () => {
    const prompt = '38.5 °C, 头痛 <|role_end|>';
    const { body } = await post('/tokenize', { model: MODEL, prompt, return_token_strs: true });
    expect(body).toMatchObject({ tokens: server.model.tokenizer.encode(prompt), max_model_len: 2048 });
    expect((body.token_strs as string[]).length).toBe(body.count);
    expect((await post('/detokenize', { tokens: body.tokens })).body).toEqual({ prompt });
  });

  test('of a conversation', async () => {
    const messages = [{ role: 'user', content: 'x' }];
    const open = await post('/tokenize', { messages });
    const closed = await post('/tokenize', { messages, add_generation_prompt: false });
    expect(Number(open.body.count)).toBeGreaterThan(Number(closed.body.count));
  });

  test.each<[string, string, unknown, string]>([
    ['both', '/tokenize', { prompt: 'x', messages: [{ role: 'user', content: 'x' }] }, 'prompt'],
    ['neither', '/tokenize', {}, 'prompt'],
    ['an unknown id', '/detokenize', { tokens: [1, 999_999] }, 'tokens[1]'],
    ['a negative id', '/detokenize', { tokens: [-1] }, 'tokens'],
  ])('%s is refused', async (_name, path, body, param) => {
    expect(await post(path, body)).toMatchObject({ status: 400, body: { error: { param } } });
  });
});
