/** Answers of a given form, and tool calls, by the official client. */
import type OpenAI from 'openai';
import { beforeAll, describe, expect, test } from 'vitest';
import { MODEL, type Serving, serving } from './serving.js';

let server: Serving;
beforeAll(async () => {
  server = await serving();
});

type Params = OpenAI.ChatCompletionCreateParamsNonStreaming;
const base = {
  model: MODEL,
  messages: [{ role: 'user' as const, content: 'How is the patient?' }],
  temperature: 0,
  max_tokens: 400,
};

const ask = (extra: Record<string, unknown>): Promise<OpenAI.ChatCompletion> =>
  server.client.chat.completions.create({ ...base, ...extra } as Params);

async function stream(extra: Record<string, unknown>): Promise<OpenAI.ChatCompletionChunk[]> {
  const params = { ...base, ...extra, stream: true } as OpenAI.ChatCompletionCreateParamsStreaming;
  const chunks: OpenAI.ChatCompletionChunk[] = [];
  for await (const chunk of await server.client.chat.completions.create(params)) chunks.push(chunk);
  return chunks;
}

const textOf = (answer: OpenAI.ChatCompletion): string => answer.choices[0]?.message.content ?? '';

const schema = {
  type: 'object',
  properties: { state: { enum: ['stable', 'critical'] }, fever: { type: 'boolean' } },
  required: ['state', 'fever'],
  additionalProperties: false,
};

describe('forms', () => {
  const format = { type: 'json_schema', json_schema: { name: 'patient', schema, strict: true } };
  const expectPatient = (text: string) => {
    const value = JSON.parse(text) as { state: string; fever: boolean };
    expect(Object.keys(value)).toEqual(['state', 'fever']);
    expect(['stable', 'critical']).toContain(value.state);
    expect(typeof value.fever).toBe('boolean');
  };

  test.each<[string, Record<string, unknown>]>([
    ['response_format', { response_format: format }],
    ['structured_outputs', { structured_outputs: { json: schema } }],
    ['structured_outputs, JSON text', { structured_outputs: { json: JSON.stringify(schema) } }],
    ['guided_json', { guided_json: schema }],
  ])('a JSON schema by %s', async (_name, extra) => {
    const answer = await ask(extra);
    expectPatient(textOf(answer));
    expect(answer.choices[0]?.finish_reason).toBe('stop');
    const chunks = await stream(extra);
    expectPatient(chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join(''));
  });

  test.each<[string, Record<string, unknown>, RegExp]>([
    ['guided_regex', { guided_regex: '[0-9]{2,3}/[0-9]{2}' }, /^\d{2,3}\/\d{2}$/],
    ['structured_outputs.regex', { structured_outputs: { regex: '(yes|no), [a-z]{3}' } }, /^(yes|no), [a-z]{3}$/],
    ['guided_choice', { guided_choice: ['stable', 'critical'] }, /^(stable|critical)$/],
    ['structured_outputs.choice', { structured_outputs: { choice: ['a "b"', 'c\\d'] } }, /^(a "b"|c\\d)$/],
    ['guided_grammar', { guided_grammar: 'root ::= "pulse " [0-9] [0-9]' }, /^pulse \d\d$/],
    ['structured_outputs.grammar', { structured_outputs: { grammar: 'root ::= "x" | "y"' } }, /^[xy]$/],
  ])('%s', async (_name, extra, form) => {
    expect(textOf(await ask(extra))).toMatch(form);
  });

  test('choices of one request each have the form', async () => {
    const answer = await ask({ guided_choice: ['left', 'right'], n: 4, temperature: 2, seed: 1 });
    for (const { message } of answer.choices) expect(['left', 'right']).toContain(message.content);
  });

  test.each<[string, Record<string, unknown>, string]>([
    ['two forms', { response_format: format, guided_regex: 'a' }, 'guided_regex'],
    ['no form', { structured_outputs: {} }, 'structured_outputs'],
    ['a bad regex', { guided_regex: '(' }, 'guided_regex'],
    ['a bad grammar', { structured_outputs: { grammar: 'root ::= nothing' } }, 'structured_outputs.grammar'],
    [
      'a bad schema',
      { response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'nonsense' } } } },
      'response_format',
    ],
    ['no choice', { guided_choice: [] }, 'guided_choice'],
  ])('%s is refused', async (_name, extra, param) => {
    await expect(ask(extra)).rejects.toMatchObject({ status: 400, param });
  });
});

describe('tools', () => {
  const tools = [
    {
      type: 'function',
      function: {
        name: 'measure',
        description: 'Measures a vital sign',
        parameters: {
          type: 'object',
          properties: { sign: { enum: ['pulse', 'pressure'] } },
          required: ['sign'],
          additionalProperties: false,
        },
      },
    },
    {
      type: 'function',
      function: { name: 'wait', parameters: { type: 'object', properties: {}, additionalProperties: false } },
    },
  ];
  type Call = OpenAI.ChatCompletionMessageFunctionToolCall;

  test.each<[string, unknown, string[]]>([
    ['required', 'required', ['measure', 'wait']],
    ['named', { type: 'function', function: { name: 'measure' } }, ['measure']],
  ])('%s calls, whole and streamed', async (_name, tool_choice, names) => {
    const extra = { tools, tool_choice, parallel_tool_calls: false };
    const answer = await ask(extra);
    const [choice] = answer.choices;
    expect(choice?.finish_reason).toBe('tool_calls');
    expect(choice?.message.content).toBeNull();
    const calls = (choice?.message.tool_calls ?? []) as Call[];
    expect(calls).toHaveLength(1);
    expect(names).toContain(calls[0]?.function.name);
    const given = JSON.parse(calls[0]?.function.arguments ?? '') as { sign?: string };
    if (calls[0]?.function.name === 'measure') expect(['pulse', 'pressure']).toContain(given.sign);

    const chunks = await stream(extra);
    const deltas = chunks.flatMap(({ choices }) => choices[0]?.delta.tool_calls ?? []);
    expect(deltas[0]).toMatchObject({ index: 0, type: 'function', function: { name: calls[0]?.function.name } });
    expect(deltas[0]?.id).toMatch(/^call_/);
    expect(deltas.slice(1).every(({ id }) => id === undefined)).toBe(true);
    expect(deltas.map((delta) => delta.function?.arguments ?? '').join('')).toBe(calls[0]?.function.arguments);
    expect(chunks.findLast(({ choices }) => choices.length > 0)?.choices[0]?.finish_reason).toBe('tool_calls');
  });

  test('none and auto leave the answer free; none does not show the tools', async () => {
    const [none, auto, without] = [
      await ask({ tools, tool_choice: 'none', max_tokens: 4 }),
      await ask({ tools, max_tokens: 4 }),
      await ask({ max_tokens: 4 }),
    ];
    expect(none.usage?.prompt_tokens).toBe(without.usage?.prompt_tokens);
    expect(auto.usage?.prompt_tokens).toBeGreaterThan(none.usage?.prompt_tokens ?? 0);
    expect(none.choices[0]?.message).not.toHaveProperty('tool_calls');
  });

  test('numbers and key order of tools reach the prompt as they were written', async () => {
    const tool =
      '{"type":"function","function":{"name":"dose","parameters":{"type":"object","properties":{"2":{"minimum":1.0},"1":{}}}}}';
    const post = (text: string) => fetch(`${server.url}/tokenize`, { method: 'POST', body: text });
    const body = `{"messages":[{"role":"user","content":"x"}],"tools":[${tool}]}`;
    const { tokens } = (await (await post(body)).json()) as { tokens: number[] };
    expect(server.model.tokenizer.decode(tokens)).toContain('"properties": {"2": {"minimum": 1.0}, "1": {}}');
  });

  test.each<[string, Record<string, unknown>, string]>([
    ['a choice without tools', { tool_choice: 'required' }, 'tool_choice'],
    ['a tool that is not there', { tools, tool_choice: { type: 'function', function: { name: 'fly' } } }, 'tool_choice'],
    ['a form beside tools', { tools, response_format: { type: 'json_object' } }, 'response_format'],
    ['a tool of another type', { tools: [{ type: 'browser' }] }, 'tools[0].type'],
    ['a tool without a name', { tools: [{ type: 'function', function: {} }] }, 'tools[0].function.name'],
  ])('%s is refused', async (_name, extra, param) => {
    await expect(ask(extra)).rejects.toMatchObject({ status: 400, param });
  });
});
