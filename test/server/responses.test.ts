/** /v1/responses by the official client: items in, items out, and the events of a stream. */
import type OpenAI from 'openai';
import { beforeAll, describe, expect, test } from 'vitest';
import { MODEL, type Serving, serving } from './serving.js';

let server: Serving;
beforeAll(async () => {
  server = await serving();
});

type Params = OpenAI.Responses.ResponseCreateParamsNonStreaming;
type Event = OpenAI.Responses.ResponseStreamEvent;
const base = { model: MODEL, input: 'How is the patient?', temperature: 0, max_output_tokens: 24 };

const ask = (extra: Record<string, unknown> = {}): Promise<OpenAI.Responses.Response> =>
  server.client.responses.create({ ...base, ...extra } as Params);

async function stream(extra: Record<string, unknown> = {}): Promise<Event[]> {
  const events: Event[] = [];
  const params = { ...base, ...extra, stream: true } as OpenAI.Responses.ResponseCreateParamsStreaming;
  for await (const event of await server.client.responses.create(params)) events.push(event);
  return events;
}

const tools = [
  {
    type: 'function',
    name: 'measure',
    strict: true,
    parameters: { type: 'object', properties: { sign: { enum: ['pulse'] } }, required: ['sign'] },
  },
];

test('an answer', async () => {
  const answer = await ask();
  expect(answer.id).toMatch(/^resp_/);
  expect(answer).toMatchObject({ object: 'response', model: MODEL, error: null, store: false, previous_response_id: null });
  expect(answer.output_text.length).toBeGreaterThan(0);
  expect(answer.output).toMatchObject([{ type: 'message', role: 'assistant', content: [{ type: 'output_text' }] }]);
  expect(answer.usage?.total_tokens).toBe((answer.usage?.input_tokens ?? 0) + (answer.usage?.output_tokens ?? 0));
});

test('one that is cut says so', async () => {
  const answer = await ask({ max_output_tokens: 3, ignore_eos: true });
  expect(answer).toMatchObject({ status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' } });
});

test('the events of a stream add up to the answer', async () => {
  const [whole, events] = [await ask(), await stream()];
  expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, i) => i));
  expect(events.slice(0, 4).map(({ type }) => type)).toEqual([
    'response.created',
    'response.in_progress',
    'response.output_item.added',
    'response.content_part.added',
  ]);
  const deltas = events.filter((event) => event.type === 'response.output_text.delta');
  expect(deltas.map(({ delta }) => delta).join('')).toBe(whole.output_text);
  expect(events.slice(-4, -1).map(({ type }) => type)).toEqual([
    'response.output_text.done',
    'response.content_part.done',
    'response.output_item.done',
  ]);
  const last = events.at(-1) as OpenAI.Responses.ResponseCompletedEvent;
  expect(last.type).toBe(whole.status === 'completed' ? 'response.completed' : 'response.incomplete');
  expect(last.response.output).toMatchObject([{ content: [{ text: whole.output_text }] }]);
});

test('the helper of the client that gathers a stream is content', async () => {
  const gathered = await server.client.responses.stream({ ...base } as never).finalResponse();
  expect(gathered.output_text).toBe((await ask()).output_text);
});

test('a conversation of items', async () => {
  const input = [
    { role: 'developer', content: 'Be brief.' },
    { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'Pulse?' }] },
    { type: 'reasoning', id: 'rs_1', summary: [], content: [{ type: 'reasoning_text', text: 'I should measure.' }] },
    { type: 'function_call', call_id: 'call_1', name: 'measure', arguments: '{"sign": "pulse"}' },
    { type: 'function_call_output', call_id: 'call_1', output: '72' },
    {
      type: 'message',
      role: 'assistant',
      id: 'msg_1',
      status: 'completed',
      content: [{ type: 'output_text', text: '72.', annotations: [] }],
    },
    { role: 'user', content: 'Is that good?' },
  ];
  const answer = await ask({ input, tools, instructions: 'You are a nurse.' });
  const messages = [
    { role: 'system', content: 'You are a nurse.' },
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Pulse?' },
    {
      role: 'assistant',
      content: '',
      reasoning_content: 'I should measure.',
      tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'measure', arguments: '{"sign": "pulse"}' } }],
    },
    { role: 'tool', tool_call_id: 'call_1', content: '72' },
    { role: 'assistant', content: '72.' },
    { role: 'user', content: 'Is that good?' },
  ];
  const nested = tools.map(({ name, parameters }) => ({ type: 'function', function: { name, parameters } }));
  const body = JSON.stringify({ messages, tools: nested });
  const response = await fetch(`${server.url}/tokenize`, { method: 'POST', body });
  expect(answer.usage?.input_tokens).toBe(((await response.json()) as { count: number }).count);
});

test('a form', async () => {
  const schema = { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'], additionalProperties: false };
  const answer = await ask({ text: { format: { type: 'json_schema', name: 'x', schema, strict: true } } });
  expect(typeof (JSON.parse(answer.output_text) as { ok: boolean }).ok).toBe('boolean');
});

test('a call, whole and streamed', async () => {
  const extra = {
    tools,
    tool_choice: { type: 'function', name: 'measure' },
    parallel_tool_calls: false,
    max_output_tokens: 200,
  };
  const answer = await ask(extra);
  expect(answer.output).toMatchObject([{ type: 'function_call', name: 'measure', status: 'completed' }]);
  const [call] = answer.output as OpenAI.Responses.ResponseFunctionToolCall[];
  expect(JSON.parse(call?.arguments ?? '')).toEqual({ sign: 'pulse' });
  expect(call?.call_id).toMatch(/^call_/);
  const events = await stream(extra);
  const deltas = events.filter((event) => event.type === 'response.function_call_arguments.delta');
  expect(deltas.map(({ delta }) => delta).join('')).toBe(call?.arguments);
  expect(events.find((event) => event.type === 'response.function_call_arguments.done')).toMatchObject({
    arguments: call?.arguments,
  });
});

test('log-probabilities', async () => {
  const answer = await ask({ include: ['message.output_text.logprobs'], top_logprobs: 2 });
  const [message] = answer.output as OpenAI.Responses.ResponseOutputMessage[];
  const part = message?.content[0] as OpenAI.Responses.ResponseOutputText;
  expect(part.logprobs?.map(({ token }) => token).join('')).toContain(answer.output_text);
});

describe('refused', () => {
  test.each<[string, Record<string, unknown>, string]>([
    ['a stored response', { previous_response_id: 'resp_1' }, 'previous_response_id'],
    ['a conversation', { conversation: 'c' }, 'conversation'],
    ['the background', { background: true }, 'background'],
    ['a tool that is not a function', { tools: [{ type: 'web_search' }] }, 'tools[0].type'],
    ['an item of another type', { input: [{ type: 'item_reference', id: 'x' }] }, 'input'],
    ['a message without a role', { input: [{ content: 'x' }] }, 'input[0].role'],
    ['a call without a name', { input: [{ type: 'function_call', call_id: 'x', arguments: '{}' }] }, 'input[0].name'],
    ['a result without output', { input: [{ type: 'function_call_output', call_id: 'x' }] }, 'input[0].output'],
    ['an image', { input: [{ role: 'user', content: [{ type: 'input_image', image_url: 'x' }] }] }, 'input'],
  ])('%s', async (_name, extra, param) => {
    await expect(ask(extra)).rejects.toMatchObject({ status: 400, param });
  });
});
