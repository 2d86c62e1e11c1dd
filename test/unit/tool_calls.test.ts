import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ToolCallParser, type ToolCallPiece, toolCallGrammar } from '../../lib/chat/tool_calls.js';
import { Tokenizer } from '../../lib/tokenizer.js';
import type { Message } from '../../lib/types.js';
import { nano } from '../helpers/files.js';

interface Call {
  name: string;
  arguments: string;
}

/** What a reader of the pieces ends up with; fails when pieces do not fit together. */
function read(pieces: string[]): { text: string; calls: Call[] } {
  const parser = new ToolCallParser();
  const result: { text: string; calls: Call[] } = { text: '', calls: [] };
  const ids = new Set<string>();
  const take = ({ text, calls }: { text: string; calls: ToolCallPiece[] }) => {
    result.text += text;
    for (const { index, id, name, arguments: given } of calls) {
      if (id !== undefined) {
        expect(id).toMatch(/^call_[0-9a-f]{24}$/);
        expect(index).toBe(result.calls.length);
        ids.add(id);
        result.calls.push({ name: name ?? '', arguments: '' });
      }
      const call = result.calls[index];
      if (call === undefined) throw new Error(`a piece of call ${index}, which has not begun`);
      call.arguments += given ?? '';
    }
  };
  for (const piece of pieces) take(parser.push(piece));
  take(parser.flush());
  expect(ids.size).toBe(result.calls.length);
  return result;
}

const weather = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京", "days": 1.0}}\n</tool_call>';
const weatherCall = { name: 'get_weather', arguments: '{"city": "北京", "days": 1.0}' };

describe('tool calls', () => {
  const cases: [string, string, { text: string; calls: Call[] }][] = [
    ['no call', 'a < b <tool\n <tool_cal> ', { text: 'a < b <tool\n <tool_cal> ', calls: [] }],
    ['one', weather, { text: '', calls: [weatherCall] }],
    ['text before', `Let me look.\n\n${weather}`, { text: 'Let me look.', calls: [weatherCall] }],
    ['text after', `${weather}\nDone. `, { text: '\nDone. ', calls: [weatherCall] }],
    ['several', `${weather}\n${weather} ${weather}\n\n`, { text: '', calls: [weatherCall, weatherCall, weatherCall] }],
    ['text between', `${weather} and ${weather}`, { text: ' and', calls: [weatherCall, weatherCall] }],
    [
      'arguments before the name',
      '<tool_call>{"arguments": {"a": [1, {"b": "}"}]}, "name": "f"}</tool_call>',
      { text: '', calls: [{ name: 'f', arguments: '{"a": [1, {"b": "}"}]}' }] },
    ],
    [
      'arguments as a string',
      '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\u5317\\"}"}</tool_call>',
      { text: '', calls: [{ name: 'f', arguments: '{"a": "北"}' }] },
    ],
    ['no arguments', '<tool_call>{"name": "f"}</tool_call>', { text: '', calls: [{ name: 'f', arguments: '{}' }] }],
    [
      'other fields, a name with escapes, tags and brackets in strings',
      '<tool_call>{"id": 7, "x": [{}, "]"], "name": "a\\"b", "arguments": {"t": "</tool_call> <tool_call>{ \\" }"}, "y": null}</tool_call>',
      { text: '', calls: [{ name: 'a"b', arguments: '{"t": "</tool_call> <tool_call>{ \\" }"}' }] },
    ],
    [
      'a number among the fields before the closing brace',
      '<tool_call>{"name":"f","arguments":{"a":1},"n":-1.5e3}</tool_call>!',
      { text: '!', calls: [{ name: 'f', arguments: '{"a":1}' }] },
    ],
    ['the closing tag is missing', weather.replace('\n</tool_call>', ''), { text: '', calls: [weatherCall] }],
    [
      '... and another call follows',
      `${weather.replace('\n</tool_call>', '')}${weather}`,
      { text: '', calls: [weatherCall, weatherCall] },
    ],
    [
      'cut off in the arguments',
      weather.slice(0, 60),
      { text: '', calls: [{ name: 'get_weather', arguments: '{"city": "北' }] },
    ],
    ['cut off in the name', weather.slice(0, 30), { text: weather.slice(0, 30), calls: [] }],
    ['not JSON', ' <tool_call>get_weather("x")</tool_call>', { text: ' <tool_call>get_weather("x")</tool_call>', calls: [] }],
    ['no name', '<tool_call>{"arguments": {}}</tool_call>.', { text: '<tool_call>{"arguments": {}}</tool_call>.', calls: [] }],
    ['an empty name', '<tool_call>{"name": ""}</tool_call>', { text: '<tool_call>{"name": ""}</tool_call>', calls: [] }],
    [
      'a name that is no string',
      '<tool_call>{"name": 5}</tool_call>',
      { text: '<tool_call>{"name": 5}</tool_call>', calls: [] },
    ],
    ['a list', '<tool_call>[1]</tool_call>', { text: '<tool_call>[1]</tool_call>', calls: [] }],
    ['a call inside of what is none', `<tool_call>{ ${weather}`, { text: '<tool_call>{', calls: [weatherCall] }],
    ['two opening tags', `<tool_call>${weather}`, { text: '<tool_call>', calls: [weatherCall] }],
    [
      'arguments that break off at the tag',
      '<tool_call>{"name": "f", "arguments": {"a": </tool_call>\n.',
      { text: '\n.', calls: [{ name: 'f', arguments: '{"a": ' }] },
    ],
    [
      'words after the arguments',
      '<tool_call>{"name": "f", "arguments": {}; rest}</tool_call>',
      { text: '; rest}</tool_call>', calls: [{ name: 'f', arguments: '{}' }] },
    ],
    ['white space only', ' \n', { text: ' \n', calls: [] }],
  ];
  test.each(cases)('%s', (_, text, expected) => {
    expect(read([text])).toEqual(expected);
    expect(read([...text])).toEqual(expected);
  });

  test('arguments come as they are written, not at the end', () => {
    const parser = new ToolCallParser();
    parser.push('<tool_call>{"name": "f", "arguments": ');
    expect(parser.push('{"a": "x').calls).toMatchObject([
      { index: 0, name: 'f' },
      { index: 0, arguments: '{"a": "x' },
    ]);
    expect(parser.push('yz')).toEqual({ text: '', calls: [{ index: 0, arguments: 'yz' }] });
  });

  test('any split of any text gives the same, and no text is lost', () => {
    const part = fc.oneof(
      fc.constantFrom(...cases.map(([, text]) => text)),
      fc.constantFrom(
        '<tool_call>',
        '</tool_call>',
        '{',
        '}',
        '"',
        '"name"',
        ':',
        '"arguments"',
        ',',
        '[',
        ']',
        '\\',
        ' ',
        '\n',
        '<',
        '1',
      ),
      fc.string({ unit: 'grapheme', maxLength: 5 }),
    );
    fc.assert(
      fc.property(fc.array(part, { maxLength: 12 }), fc.array(fc.nat(400), { maxLength: 20 }), (parts, cuts) => {
        const text = parts.join('');
        const places = [0, ...cuts.map((cut) => cut % (text.length + 1)).sort((a, b) => a - b), text.length];
        const pieces = places.slice(1).map((end, i) => text.slice(places[i], end));
        const whole = read([text]);
        expect(read(pieces)).toEqual(whole);
        if (whole.calls.length === 0) expect(whole.text).toBe(text);
      }),
      { numRuns: 2000 },
    );
  });

  test('what the chat template writes is read back', async () => {
    const tokenizer = await Tokenizer.load(nano);
    const calls = [
      { name: 'f', arguments: '{"b": 1.0, "a": "北"}' },
      { name: 'g', arguments: '{}' },
    ];
    for (const content of ['', 'I will look.']) {
      const messages: Message[] = [
        { role: 'user', content: 'q' },
        { role: 'assistant', content, tool_calls: calls },
      ];
      const prompt = tokenizer.applyChatTemplate(messages, { addGenerationPrompt: false });
      const answer = prompt.slice(prompt.lastIndexOf('<role>ASSISTANT</role>') + 22, prompt.lastIndexOf('<|role_end|>'));
      expect(read([answer])).toEqual({ text: content, calls });
    }
  });
});

describe('toolCallGrammar', () => {
  const parameters = { type: 'object', properties: {} };
  const tools = [
    { type: 'function' as const, function: { name: 'f', parameters } },
    { type: 'function' as const, function: { name: 'g' } },
  ];
  test('any tool, or the named one', () => {
    const g = { name: 'g', parameters: { type: 'object' } };
    expect(toolCallGrammar(tools, 'required', true)).toEqual({ toolCalls: [{ name: 'f', parameters }, g], parallel: true });
    expect(toolCallGrammar(tools, 'required', false)).toMatchObject({ parallel: false });
    expect(toolCallGrammar(tools, { name: 'g' }, true)).toEqual({ toolCalls: [g], parallel: false });
    expect(() => toolCallGrammar(tools, { name: 'h' }, true)).toThrow(/not among them/);
    expect(() => toolCallGrammar([], 'required', true)).toThrow(/not among them/);
  });
});
