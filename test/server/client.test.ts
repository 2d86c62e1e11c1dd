/** The in-process client answers as the official client does against a server of the same model. */
import type OpenAI from 'openai';
import { beforeAll, describe, expect, test } from 'vitest';
import { type Client, ClientError, createClient } from '../../lib/client.js';
import { MODEL, type Serving, serving } from './serving.js';

let served: Serving;
let own: Client;
let official: OpenAI;

beforeAll(async () => {
  served = await serving();
  official = served.client;
  own = createClient(served.model, { modelName: MODEL });
});

const messages = [{ role: 'user' as const, content: 'What is hypertension?' }];
const common = { model: MODEL, temperature: 0, max_tokens: 12 };
const tools = [
  {
    type: 'function' as const,
    function: {
      name: 'look_up',
      parameters: { type: 'object', properties: { term: { enum: ['a', 'b'] } }, required: ['term'] },
    },
  },
];

/** Without what differs from one request to the next. */
function settled(value: unknown): unknown {
  const passing = new Set([
    'id',
    'created',
    'created_at',
    'completed_at',
    'item_id',
    'call_id',
    '_request_id',
    'cached_tokens',
  ]);
  return JSON.parse(JSON.stringify(value, (key, field) => (passing.has(key) ? undefined : field)));
}

async function all<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of stream) items.push(item);
  return items;
}

async function failure(work: Promise<unknown>): Promise<ClientError> {
  return work.then(
    () => Promise.reject(new Error('it did not fail')),
    (error: ClientError) => error,
  );
}

describe('answers', () => {
  test.each([
    ['plain', {}],
    ['two choices with log-probabilities', { n: 2, seed: 3, logprobs: true, top_logprobs: 2 }],
    ['a call', { tools, tool_choice: 'required' as const, max_tokens: 200 }],
    ['a schema', { response_format: { type: 'json_object' as const }, max_tokens: 30 }],
  ])('chat: %s', async (_, options) => {
    const body = { ...common, messages, ...options };
    expect(settled(await own.chat.completions.create(body))).toEqual(settled(await official.chat.completions.create(body)));
  });

  test('chat, streamed', async () => {
    const body = { ...common, messages, stream: true as const, stream_options: { include_usage: true } };
    const mine = await all(await own.chat.completions.create(body));
    const theirs = await all(await official.chat.completions.create(body));
    const text = (chunks: { choices: { delta: { content?: string | null } }[] }[]) =>
      chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join('');
    expect(text(mine)).toBe(text(theirs));
    expect(text(mine)).not.toBe('');
    for (const at of [0, -2, -1]) expect(settled(mine.at(at))).toEqual(settled(theirs.at(at)));
    expect(new Set(mine.map(({ id }) => id)).size).toBe(1);
  });

  test('completions, whole and streamed', async () => {
    const body = { ...common, prompt: 'Hypertension is' };
    const whole = await own.completions.create(body);
    expect(settled(whole)).toEqual(settled(await official.completions.create(body)));
    const pieces = await all(await own.completions.create({ ...body, stream: true }));
    expect(pieces.map(({ choices }) => choices[0]?.text ?? '').join('')).toBe(whole.choices[0]?.text);
  });

  test('responses, whole and streamed', async () => {
    const body = { model: MODEL, temperature: 0, max_output_tokens: 12, input: 'What is hypertension?' };
    const whole = await own.responses.create(body);
    const theirs = await official.responses.create(body);
    expect(whole.output_text).toBe(theirs.output_text);
    expect(settled(whole)).toEqual(settled(theirs));
    const events = await all(await own.responses.create({ ...body, stream: true }));
    const last = events.at(-1);
    expect(settled(last && 'response' in last ? last.response.output : undefined)).toEqual(settled(theirs.output));
  });

  test('models', async () => {
    const theirs = await official.models.list();
    expect(settled((await own.models.list()).data)).toEqual(settled(theirs.data));
    expect((await all(own.models.list())).map(({ id }) => id)).toEqual([MODEL]);
    expect(settled(await own.models.retrieve(MODEL))).toEqual(settled(await official.models.retrieve(MODEL)));
  });
});

describe('errors', () => {
  test.each([
    ['an unknown model', { ...common, messages, model: 'gpt' }],
    ['an unknown field', { ...common, messages, top_q: 1 }],
    ['a value out of range', { ...common, messages, temperature: -1 }],
    ['a bad schema', { ...common, messages, guided_json: { not: {} } }],
  ])('%s', async (_, body) => {
    const mine = await failure(own.chat.completions.create(body));
    const theirs = await failure(official.chat.completions.create(body as OpenAI.ChatCompletionCreateParamsNonStreaming));
    expect(mine).toBeInstanceOf(ClientError);
    const { message, status, code, param, type, error } = theirs;
    expect(mine).toMatchObject({ message, status, code, param, type, error });
  });

  test('models.retrieve of another', async () => {
    expect(await failure(own.models.retrieve('gpt'))).toMatchObject({ status: 404, code: 'model_not_found' });
  });
});

describe('ends', () => {
  const long = { messages, max_tokens: 1500, ignore_eos: true, stream: true as const };
  const noneRuns = () => expect.poll(() => served.model.stats().running).toBe(0);

  test('leaving the loop', async () => {
    for await (const chunk of await own.chat.completions.create(long)) if (chunk.choices[0]?.delta.content) break;
    await noneRuns();
  });

  test('controller.abort() ends the loop without an error', async () => {
    const stream = await own.chat.completions.create(long);
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 2) stream.controller.abort();
    expect(chunks).toBeLessThan(1500);
    await noneRuns();
  });

  test('signal and timeout', async () => {
    const whole = { ...long, stream: false as const };
    const aborted = { status: 499, name: 'APIUserAbortError' };
    expect(await failure(own.chat.completions.create(whole, { signal: AbortSignal.abort() }))).toMatchObject(aborted);
    expect(await failure(own.chat.completions.create(whole, { timeout: 30 }))).toMatchObject(aborted);
    await noneRuns();
  });
});

test('without a name any name will do', async () => {
  const free = createClient(served.model);
  const answer = await free.chat.completions.create({ model: 'gpt-4o', messages, max_tokens: 1 });
  expect(answer.model).toBe('nano');
});

test('a stream as lines of JSON', async () => {
  const stream = await own.chat.completions.create({ ...common, messages, stream: true });
  const chunks = await all(stream.toReadableStream());
  const lines = Buffer.concat(chunks).toString().trimEnd().split('\n');
  expect(lines.map((line) => JSON.parse(line).object)).toEqual(lines.map(() => 'chat.completion.chunk'));
});

test('answers have the types of the official package', async () => {
  const whole = await own.chat.completions.create({ ...common, messages });
  // Compiling is half of the test: what an app declares with the package's types takes what this client gives.
  const message: Pick<OpenAI.ChatCompletionMessage, 'role' | 'content' | 'refusal' | 'tool_calls'> | undefined =
    whole.choices[0]?.message;
  const usage: OpenAI.CompletionUsage | null | undefined = whole.usage;
  expect(message?.content).not.toBe('');
  expect(usage?.completion_tokens).toBe(12);
});
