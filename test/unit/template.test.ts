import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { LING_TEMPLATE } from '../../lib/chat/ling-template.js';
import {
  type ChatOptions,
  CheckpointError,
  InvalidArgumentError,
  type JsonValue,
  type Message,
  parseJson,
  Tokenizer,
} from '../../lib/index.js';
import { folderWith, golden, nano } from '../helpers/files.js';

const tokenizerJson = readFileSync(join(nano, 'tokenizer.json'), 'utf8');
const cases = parseJson(readFileSync(golden('chat-cases.json'), 'utf8')) as Map<string, JsonValue>[];
const user: Message = { role: 'user', content: 'Hi' };

let tokenizer: Tokenizer;
let builtIn: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(nano);
  builtIn = await Tokenizer.load(folderWith({ 'tokenizer.json': tokenizerJson }));
});

/** Renders with a template of one's own. */
async function render(template: string, messages: Message[] = [user], options: ChatOptions = {}): Promise<string> {
  const own = await Tokenizer.load(nano, { chatTemplate: template });
  return own.applyChatTemplate(messages, options);
}

describe('chat template', () => {
  test('there are sixty golden cases', () => expect(cases.length).toBe(60));

  test.each([...cases.keys()])('golden case %i', (i) => {
    const item = cases[i] as Map<string, JsonValue>;
    const messages = item.get('messages') as unknown as Message[];
    const options = {
      tools: (item.get('tools') ?? undefined) as ChatOptions['tools'],
      addGenerationPrompt: item.get('add_generation_prompt') as boolean,
    };
    expect(tokenizer.applyChatTemplate(messages, options)).toBe(item.get('text'));
    expect(builtIn.applyChatTemplate(messages, options)).toBe(item.get('text'));
  });

  test('order of sources: option, chat_template.jinja, tokenizer_config.json, built in', async () => {
    const files = { 'tokenizer.json': tokenizerJson, 'tokenizer_config.json': { chat_template: 'config' } };
    const withFile = folderWith({ ...files, 'chat_template.jinja': 'file' });
    const source = async (folder: string, chatTemplate?: string) => {
      const loaded = await Tokenizer.load(folder, { chatTemplate });
      return [loaded.chatTemplateSource, loaded.applyChatTemplate([user])];
    };
    expect(await source(withFile, 'option')).toEqual(['option', 'option']);
    expect(await source(withFile)).toEqual(['chat_template.jinja', 'file']);
    expect(await source(folderWith(files))).toEqual(['tokenizer_config.json', 'config']);
    expect(builtIn.chatTemplateSource).toBe('built-in');
    expect(await render(LING_TEMPLATE)).toBe(builtIn.applyChatTemplate([user]));
  });

  test('named templates: tool_use when tools are given', async () => {
    const chat_template = [
      { name: 'default', template: 'plain' },
      { name: 'tool_use', template: 'tools' },
    ];
    const named = await Tokenizer.load(
      folderWith({ 'tokenizer.json': tokenizerJson, 'tokenizer_config.json': { chat_template } }),
    );
    expect(named.applyChatTemplate([user])).toBe('plain');
    expect(named.applyChatTemplate([user], { tools: [{ type: 'function', function: { name: 'f' } }] })).toBe('tools');
    const nameless = folderWith({
      'tokenizer.json': tokenizerJson,
      'tokenizer_config.json': { chat_template: [{ name: 'x' }] },
    });
    await expect(Tokenizer.load(nameless)).rejects.toThrow('chat_template');
  });

  test('tool JSON keeps number text and key order', () => {
    const schema =
      '{"10": 1.0, "2": 1e3, "big": 12345678901234567890, "text": "头\\u0041\\n", "none": null, "on": true, "l": []}';
    const tools = `[{"type": "function", "function": {"name": "f", "parameters": ${schema}}}]`;
    const rendered = tokenizer.applyChatTemplate([user], { tools });
    expect(rendered).toContain(`{"name": "f", "parameters": ${schema.replace('\\u0041', 'A')}}`);
    expect(tokenizer.applyChatTemplate([user], { tools: parseJson(tools) as ChatOptions['tools'] })).toBe(rendered);
  });

  test('arguments: text reaches the prompt unchanged, a conversation as JSON text keeps numbers', () => {
    const call = (given: string) =>
      `{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": ${given}}]}`;
    const render = (given: string) => tokenizer.applyChatTemplate(`[{"role": "user", "content": "Hi"}, ${call(given)}]`);
    expect(render('{"10":1.0,"2":1e3}')).toContain('"arguments": {"10": 1.0, "2": 1e3}}');
    expect(render(JSON.stringify('{"10":1.0,"2":1e3}'))).toContain('"arguments": {"10":1.0,"2":1e3}}');
  });

  test('text parts are joined; any other part is refused by name', () => {
    const content = [
      { type: 'text' as const, text: 'a' },
      { type: 'text' as const, text: 'b' },
    ];
    expect(tokenizer.applyChatTemplate([{ role: 'user', content }])).toContain('<role>HUMAN</role>ab<|role_end|>');
    const image = [{ type: 'image_url', image_url: { url: 'x' } }] as unknown as Message['content'];
    expect(() => tokenizer.applyChatTemplate([user, { role: 'user', content: image }])).toThrow(
      'messages[1].content[0].type: expected "text", found "image_url"',
    );
  });

  test('malformed conversations are refused with the place', () => {
    const cyclic: Record<string, unknown> = {};
    cyclic.self = cyclic;
    const bad: [messages: unknown, message: string][] = [
      [[], 'at least one message'],
      ['[1]', 'messages[0]: expected an object'],
      ['{', 'messages: not JSON'],
      [7, 'messages: expected an array'],
      [[{ role: 'robot', content: 'x' }], 'messages[0].role: expected one of system, user, assistant, tool, found "robot"'],
      [[{ role: 'user' }], 'messages[0].content: a user message needs text'],
      [[{ role: 'user', content: 7 }], 'messages[0].content'],
      [[{ role: 'assistant', reasoning_content: 7 }], 'messages[0].reasoning_content'],
      [[{ role: 'assistant', tool_calls: [{ function: { name: 7 } }] }], 'messages[0].tool_calls[0].function.name'],
      [[{ role: 'assistant', tool_calls: [{ name: 'f', arguments: 7 }] }], 'messages[0].tool_calls[0].arguments'],
      [[{ ...user, extra: cyclic }], 'nested more than'],
      [[{ ...user, extra: Number.NaN }], 'messages[0].extra: NaN'],
      [[{ ...user, extra: () => 1 }], 'messages[0].extra'],
    ];
    for (const [messages, message] of bad) {
      const apply = () => tokenizer.applyChatTemplate(messages as Message[]);
      expect(apply).toThrow(InvalidArgumentError);
      expect(apply).toThrow(message);
    }
    expect(() => tokenizer.applyChatTemplate([user], { tools: '{}' })).toThrow('tools: expected an array');
    expect(() => tokenizer.applyChatTemplate([user], { tool: [] } as ChatOptions)).toThrow('unknown option "tool"');
  });

  test('continueFinalMessage leaves the last turn open', () => {
    const messages: Message[] = [user, { role: 'assistant', content: 'Drink <|role_end|> wat' }];
    const text = tokenizer.applyChatTemplate(messages, { continueFinalMessage: true });
    expect(text.endsWith('<role>ASSISTANT</role>Drink <|role_end|> wat')).toBe(true);
    expect(() => tokenizer.applyChatTemplate([user], { continueFinalMessage: true })).toThrow('last message');
    const both = { continueFinalMessage: true, addGenerationPrompt: true };
    expect(() => tokenizer.applyChatTemplate(messages, both)).toThrow('excludes addGenerationPrompt');
  });

  test('chatTemplateKwargs become variables, except those with options of their own', async () => {
    expect(await render('{{ a.b }} {{ n }}', [user], { chatTemplateKwargs: { a: { b: 'c' }, n: 2.5 } })).toBe('c 2.5');
    await expect(render('x', [user], { chatTemplateKwargs: { messages: [] } })).rejects.toThrow('chatTemplateKwargs.messages');
  });

  test("Python's strings: strip takes a set of characters, split a limit", async () => {
    expect(await render("{{ '  \\n x \\n'.strip('\\n') }}|{{ ' a '.strip() }}|{{ 'xxaxx'.lstrip('x') }}")).toBe(
      '  \n x |a|axx',
    );
    expect(await render("{{ 'a,b,c'.split(',', 1) | join('+') }}|{{ ' a  b '.split() | join('+') }}")).toBe('a+b,c|a+b');
    expect(await render("{{ 'aaa'.replace('a', 'b', 2) }}|{{ 'abc'.startswith(('x', 'ab')) }}")).toBe('bba|true');
    expect(await render("{{ {'b': 1, 'a': [2]} | tojson(indent=2, sort_keys=true) }}")).toBe(
      '{\n  "a": [\n    2\n  ],\n  "b": 1\n}',
    );
    expect(await render("{{ 1 == 1.0 }} {{ '1' == 1 }} {{ [1, 'a'] == [1, 'a'] }} {{ none == nothing }}")).toBe(
      'true false true false',
    );
    expect(await render("{{ 'é' | tojson(ensure_ascii=true) }} {{ 1.0 | tojson }}")).toBe('"\\u00e9" 1.0');
  });
});

describe('templates that fail', () => {
  const loops = '{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}';
  const grows = "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}";
  const cases: [name: string, template: string, message: string][] = [
    ['syntax', '{% if %}', 'failed'],
    ['unclosed', '{{ "', 'failed'],
    ['a part of nothing', '{{ messages[7].content }}', 'a part of messages is undefined'],
    ['unknown function', '{{ nothing() }}', 'failed'],
    ['unknown filter', "{{ 'a' | nothing }}", 'nothing'],
    ['endless loop', loops, 'ran for more than'],
    ['endless growth', grows, 'more than'],
    [
      'a list without end',
      '{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}',
      'list',
    ],
    ['a range without end', '{{ range(10000000000) }}', 'at most'],
    ['endless recursion', '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'failed'],
    ['deep nesting', `{{ ${'('.repeat(100_000)}1${')'.repeat(100_000)} }}`, 'failed'],
  ];

  test.each(cases)('%s', async (_, template, message) => {
    const rendering = render(template);
    await expect(rendering).rejects.toThrow(InvalidArgumentError);
    await expect(rendering).rejects.toThrow(message);
  });

  test('raise_exception is about the conversation, a broken file about the checkpoint', async () => {
    await expect(render("{{ raise_exception('roles must alternate') }}")).rejects.toMatchObject({
      argument: 'messages',
      message: expect.stringContaining('roles must alternate'),
    });
    const broken = await Tokenizer.load(folderWith({ 'tokenizer.json': tokenizerJson, 'chat_template.jinja': '{% if %}' }));
    expect(() => broken.applyChatTemplate([user])).toThrow(CheckpointError);
  });
});
