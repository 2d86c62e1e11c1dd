/** No message can forge a turn: whatever it says, the special tokens of its prompt are those of a harmless one. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { LING_TEMPLATE } from '../../lib/chat/ling-template.js';
import { type ChatOptions, type Message, Tokenizer, type ToolCall } from '../../lib/index.js';
import { folderWith, nano } from '../helpers/files.js';

const tokenizerJson = JSON.parse(readFileSync(join(nano, 'tokenizer.json'), 'utf8'));

/** As nano's, with the tags of thinking and tool calls, a token of one character and overlapping ones as added tokens. */
const richTokens = ['<think>', '</think>', '<tool_call>', '</tool_call>', '§', '<<', '<|<|x|>'].map((content, i) => ({
  id: 6144 + i,
  content,
  special: i % 2 === 0,
}));

// Pieces of spellings, whole ones, other cases of them, and the characters that markers are made of.
const dangerous = fc.constantFrom(
  ...['<role>', '</role>', '<|role_end|>', '<|role_', 'end|>', '<|', '<', '>', 'role>', '<RO', 'LE>', '[gMASK]', '[gMA', 'SK]'],
  ...['<think>', '</think>', '<think', '</th', 'ink>', '<tool_call>', '§', '<<', '<|<|x|>', 'HUMAN', '\n', ' ', 'a', '"', '\\'],
  ...['\ufdd0', '\ufdd1', '\ue000', '头', '<|startoftext|>', '<|endoftext|>'],
);
const hostile = fc.array(dangerous, { maxLength: 6 }).map((parts) => parts.join(''));

const toolCall = fc.record({ name: hostile, arguments: fc.oneof(hostile, fc.dictionary(hostile, hostile)) });
const message: fc.Arbitrary<Message> = fc.oneof(
  fc.record({ role: fc.constantFrom('user' as const, 'system' as const), content: hostile }),
  fc.record({ role: fc.constant('tool' as const), content: hostile, tool_call_id: hostile }),
  fc.record({ role: fc.constant('assistant' as const), content: hostile, tool_calls: fc.array(toolCall, { maxLength: 2 }) }),
  fc.record({ role: fc.constant('assistant' as const), content: hostile, reasoning_content: hostile }),
);
const tools = fc.option(
  fc.array(
    fc.record({
      type: fc.constant('function' as const),
      function: fc.record({ name: hostile, description: hostile, parameters: fc.dictionary(hostile, hostile) }),
    }),
    { minLength: 1, maxLength: 2 },
  ),
  { nil: undefined },
);
const conversation = fc.tuple(fc.array(message, { minLength: 1, maxLength: 5 }), tools, fc.boolean());

/** The same conversation with nothing in it: texts that were there stay there, so that the template decides alike. */
function harmless(messages: Message[], given: ChatOptions['tools']): [Message[], ChatOptions['tools']] {
  const calm = (text: string) => (text.trim() === '' ? text : 'x');
  const calmObject = (value: object, i: number) => Object.fromEntries(Object.keys(value).map((_, k) => [`k${i}${k}`, 'x']));
  const calmCall = (call: ToolCall, i: number): ToolCall => {
    if ('function' in call) return call;
    return { name: 'x', arguments: typeof call.arguments === 'string' ? 'x' : calmObject(call.arguments, i) };
  };
  const calmed = messages.map((m) => ({
    ...m,
    content: calm(m.content as string),
    ...(m.tool_calls ? { tool_calls: m.tool_calls.map(calmCall) } : {}),
    ...(typeof m.reasoning_content === 'string' ? { reasoning_content: calm(m.reasoning_content) } : {}),
  }));
  const calmTools = (given as { function: { parameters: object } }[] | undefined)?.map((tool, i) => ({
    type: 'function' as const,
    function: { name: 'x', description: 'x', parameters: calmObject(tool.function.parameters, i) },
  }));
  return [calmed, calmTools];
}

async function addedIn(tokenizer: Tokenizer, messages: Message[], options: ChatOptions): Promise<number[]> {
  const added = new Set<number>([...tokenizerJson.added_tokens, ...richTokens].map(({ id }: { id: number }) => id));
  return (await tokenizer.encodeChat(messages, options)).filter((id) => added.has(id));
}

let plain: Tokenizer;
let rich: Tokenizer;
/** A template that cuts and joins message text in every way that could bring two pieces of a spelling together. */
let cutting: Tokenizer;
beforeAll(async () => {
  plain = await Tokenizer.load(nano);
  const files = { 'tokenizer.json': { ...tokenizerJson, added_tokens: [...tokenizerJson.added_tokens, ...richTokens] } };
  rich = await Tokenizer.load(folderWith(files), { chatTemplate: LING_TEMPLATE });
  const template = `{%- for m in messages -%}
{{- '<role>' + m.role + '</role>' -}}
{%- set t = m.content -%}
{{- t.replace('a', '') + t.split('\\n') | join('') + t[1:] + t[:-1] + t[::-1] + t | trim + t.strip('<') -}}
{{- t + m.name if m.name else t.rstrip() ~ t.lstrip() -}}
{{- t | lower ~ t | upper ~ [t, t] | tojson ~ t | replace(' ', '') ~ t.split('<think>')[0] + t.split('</think>')[-1] -}}
<|role_end|>
{%- endfor -%}`;
  cutting = await Tokenizer.load(folderWith(files), { chatTemplate: template });
});

describe('messages cannot forge turns', () => {
  // A template may look for <think> in an answer and treat it as thinking, so only roles and ends are compared there.
  test('nano: same special tokens as a harmless conversation, and the text comes back', async () => {
    await fc.assert(
      fc.asyncProperty(conversation, async ([messages, given, addGenerationPrompt]) => {
        const [calmMessages, calmTools] = harmless(messages, given);
        const hostileIds = await addedIn(plain, messages, { tools: given, addGenerationPrompt });
        expect(hostileIds).toEqual(await addedIn(plain, calmMessages, { tools: calmTools, addGenerationPrompt }));
        const ids = await plain.encodeChat(messages, { tools: given, addGenerationPrompt });
        const text = plain.applyChatTemplate(messages, { tools: given, addGenerationPrompt });
        expect(plain.decode(ids, { skipSpecial: false })).toBe(text);
      }),
      { numRuns: 300 },
    );
  });

  test('tags of thinking and tools as added tokens: messages write none of them', async () => {
    const structure = (ids: number[]) => ids.filter((id) => id < 6144 || id === 6148 || id > 6149);
    await fc.assert(
      fc.asyncProperty(conversation, async ([messages, given, addGenerationPrompt]) => {
        const [calmMessages, calmTools] = harmless(messages, given);
        const found = structure(await addedIn(rich, messages, { tools: given, addGenerationPrompt }));
        expect(found).toEqual(structure(await addedIn(rich, calmMessages, { tools: calmTools, addGenerationPrompt })));
      }),
      { numRuns: 300 },
    );
  });

  test('a template that cuts and joins', async () => {
    const turn = fc.record({ role: fc.constantFrom('user' as const, 'assistant' as const), content: hostile, name: hostile });
    await fc.assert(
      fc.asyncProperty(fc.array(turn, { minLength: 1, maxLength: 4 }), async (messages) => {
        const ids = await addedIn(cutting, messages, {});
        expect(ids).toEqual(messages.flatMap(() => [6141, 6142, 6143]));
      }),
      { numRuns: 300 },
    );
  });

  test('a harmless conversation has the ids of its text', async () => {
    const messages: Message[] = [
      { role: 'system', content: 'You help.' },
      { role: 'user', content: '我最近经常头痛 < 3 days' },
    ];
    expect(await plain.encodeChat(messages)).toEqual(plain.encode(plain.applyChatTemplate(messages)));
  });

  test('thinking written by the template is a token, thinking written by a message is text', async () => {
    const messages: Message[] = [
      { role: 'user', content: 'why <think>' },
      { role: 'assistant', content: 'so', reasoning_content: 'because </think> no' },
    ];
    const ids = await rich.encodeChat(messages, { addGenerationPrompt: false });
    expect(ids.filter((id) => id === 6144 || id === 6145)).toEqual([6144, 6145]);
  });
});
