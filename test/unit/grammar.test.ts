import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Grammars } from '../../lib/grammar/matcher.js';
import { Tokenizer } from '../../lib/tokenizer.js';
import type { StructuredOutput } from '../../lib/types.js';
import { folderWith, nano } from '../helpers/files.js';
import { idsOf, randomFrom, walk } from '../helpers/grammar_walk.js';

const VOCAB = 6144;
let tokenizer: Tokenizer;
let grammars: Grammars;

beforeAll(async () => {
  tokenizer = await Tokenizer.load(nano);
  grammars = new Grammars({ tokenizer, vocabSize: VOCAB, stopIds: tokenizer.stopIds });
});
afterAll(() => grammars.close());

/** Texts of walks that ended, at least half of all; valid UTF-8 or this throws. */
async function texts(form: StructuredOutput, count: number, seed = 1): Promise<string[]> {
  const random = randomFrom(seed);
  const found: string[] = [];
  for (let i = 0; i < count; i++) {
    const matcher = await grammars.open(form);
    const { bytes, ended } = await walk(matcher, tokenizer, random);
    matcher.close();
    if (ended) found.push(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  }
  expect(found.length).toBeGreaterThanOrEqual(count / 2);
  return found;
}

type Fields = { [key: string]: unknown };
const isText = (value: unknown) => typeof value === 'string';
const isInteger = (value: unknown) => Number.isInteger(value);
const isObject = (value: unknown): value is Fields => typeof value === 'object' && value !== null && !Array.isArray(value);
const keysWithin = (value: Fields, keys: string[]) => Object.keys(value).every((key) => keys.includes(key));

const schemas: { name: string; schema: Fields; holds(value: unknown): boolean }[] = [
  {
    name: 'an object of several types, one optional',
    schema: {
      type: 'object',
      title: 'Patient',
      properties: { name: { type: 'string' }, age: { type: 'integer', minimum: 0, maximum: 120 }, smoker: { type: 'boolean' } },
      required: ['name', 'age'],
    },
    holds: (value) =>
      isObject(value) &&
      keysWithin(value, ['name', 'age', 'smoker']) &&
      isText(value.name) &&
      isInteger(value.age) &&
      Number(value.age) >= 0 &&
      Number(value.age) <= 120 &&
      (value.smoker === undefined || typeof value.smoker === 'boolean'),
  },
  {
    name: 'a list with bounds',
    schema: { type: 'array', items: { enum: ['高', '低', 'no "quotes"', 7, null] }, minItems: 2, maxItems: 3 },
    holds: (value) =>
      Array.isArray(value) &&
      value.length >= 2 &&
      value.length <= 3 &&
      value.every((item) => ['高', '低', 'no "quotes"', 7, null].includes(item)),
  },
  {
    name: 'a tree by reference',
    schema: {
      $ref: '#/$defs/node',
      $defs: {
        node: {
          type: 'object',
          properties: { id: { type: 'integer' }, children: { type: 'array', items: { $ref: '#/$defs/node' } } },
          required: ['id', 'children'],
        },
      },
    },
    holds: function isNode(value): boolean {
      return isObject(value) && isInteger(value.id) && Array.isArray(value.children) && value.children.every(isNode);
    },
  },
  {
    name: 'alternatives, patterns and formats',
    schema: {
      anyOf: [
        { type: 'string', pattern: '^[A-Z]\\d{2}(\\.\\d)?$' },
        { type: 'string', format: 'date' },
        { type: ['null', 'boolean'] },
      ],
    },
    holds: (value) =>
      value === null ||
      typeof value === 'boolean' ||
      (isText(value) && /^(?:[A-Z]\d{2}(\.\d)?|\d{4}-\d{2}-\d{2})$/.test(String(value))),
  },
  {
    name: 'names that need escaping, and one that is required but not described',
    schema: {
      type: 'object',
      properties: { 'a"b\\c\n北': { type: 'integer' }, 'c"]~1': { type: 'null' } },
      required: ['a"b\\c\n北', 'other"'],
    },
    holds: (value) =>
      isObject(value) &&
      isInteger(value['a"b\\c\n北']) &&
      'other"' in value &&
      keysWithin(value, ['a"b\\c\n北', 'c"]~1', 'other"']),
  },
  {
    name: 'a list without a kind of item but with a length',
    schema: { minItems: 1, maxItems: 1 },
    holds: (value) => Array.isArray(value) && value.length === 1,
  },
  {
    name: 'what pydantic and zod write',
    schema: {
      $schema: 'https://json-schema.org/draft/2020-12/schema',
      type: 'object',
      title: 'Record',
      properties: {
        sex: { $ref: '#/$defs/Sex' },
        note: { anyOf: [{ type: 'string', minLength: 1 }, { type: 'null' }], default: null, description: 'free text' },
        pair: { type: 'array', prefixItems: [{ type: 'integer' }, { type: 'boolean' }], minItems: 2, maxItems: 2 },
        counts: { type: 'object', additionalProperties: { type: 'integer' } },
        kind: { const: 'record', type: 'string' },
        visit: { allOf: [{ $ref: '#/$defs/Visit' }], description: 'the last one' },
        nothing: { type: 'object', properties: {}, additionalProperties: false },
      },
      required: ['sex', 'note', 'pair', 'counts', 'kind', 'visit', 'nothing'],
      additionalProperties: false,
      $defs: {
        Sex: { enum: ['f', 'm'], title: 'Sex', type: 'string' },
        Visit: {
          oneOf: [
            { type: 'object', properties: { on: { type: 'string', format: 'date' } }, required: ['on'] },
            { type: 'object', properties: { planned: { type: 'boolean' } }, required: ['planned'] },
          ],
          discriminator: { propertyName: 'kind' },
        },
      },
    },
    holds: (value) => {
      if (!isObject(value)) return false;
      const { sex, note, pair, counts, kind, visit, nothing } = value;
      return (
        (sex === 'f' || sex === 'm') &&
        (note === null || (isText(note) && note !== '')) &&
        Array.isArray(pair) &&
        pair.length === 2 &&
        isInteger(pair[0]) &&
        typeof pair[1] === 'boolean' &&
        isObject(counts) &&
        Object.values(counts).every(isInteger) &&
        kind === 'record' &&
        isObject(visit) &&
        ('on' in visit || 'planned' in visit) &&
        isObject(nothing) &&
        keysWithin(nothing, [])
      );
    },
  },
  {
    name: 'any names, one of them required',
    schema: { required: ['a'], additionalProperties: { type: 'boolean' } },
    holds: (value) => isObject(value) && 'a' in value && Object.values(value).every((item) => typeof item === 'boolean'),
  },
  {
    name: 'described properties, and leave to add others: none are added, they could repeat a name',
    schema: { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'], additionalProperties: true },
    holds: (value) => isObject(value) && isInteger(value.a) && keysWithin(value, ['a']),
  },
  {
    name: 'text of a bounded length that may hold anything, controls escaped',
    schema: { type: 'object', propertyNames: { minLength: 1, maxLength: 2 }, additionalProperties: true, maxProperties: 2 },
    holds: (value) =>
      isObject(value) &&
      Object.keys(value).every((key) => [...key].length >= 1 && [...key].length <= 2) &&
      Object.keys(value).length <= 2,
  },
  {
    name: 'numbers within bounds',
    schema: {
      type: 'object',
      properties: {
        temperature: { type: 'number', minimum: 35.5, maximum: 42 },
        share: { type: ['number', 'null'], exclusiveMinimum: 0, maximum: 1 },
        loss: { maximum: -0.5 },
        count: { type: 'integer', exclusiveMinimum: -2.5 },
      },
      required: ['temperature', 'share', 'loss', 'count'],
      $defs: { unused: { type: 'number', minimum: 0 } },
    },
    holds: (value) =>
      isObject(value) &&
      Number(value.temperature) >= 35.5 &&
      Number(value.temperature) <= 42 &&
      (value.share === null || (Number(value.share) > 0 && Number(value.share) <= 1)) &&
      Number(value.loss) <= -0.5 &&
      isInteger(value.count) &&
      Number(value.count) >= -2,
  },
  {
    name: 'text of a bounded length',
    schema: { type: 'string', minLength: 2, maxLength: 5 },
    holds: (value) => isText(value) && [...String(value)].length >= 2 && [...String(value)].length <= 5,
  },
];

describe('random walks stay within the form', () => {
  test.each(schemas)('json: $name', async ({ schema, holds }) => {
    for (const text of await texts({ json: schema }, 30)) {
      expect(holds(JSON.parse(text)), text).toBe(true);
    }
  });

  test('json as text, and as a map with its order of keys', async () => {
    const text = '{"type":"object","properties":{"2":{"type":"null"},"1":{"type":"null"}},"required":["1","2"]}';
    expect(new Set(await texts({ json: text }, 4))).toEqual(new Set(['{"2": null, "1": null}']));
  });

  test('jsonObject', async () => {
    for (const text of await texts({ jsonObject: true }, 30)) expect(isObject(JSON.parse(text)), text).toBe(true);
  });

  test.each(['\\d{3}-[a-c]+', '(?:是|否|yes|no)(?: \\(\\d{1,2}%\\))?', '[a-z]{0,8}@[a-z.]{1,9}'])('regex %s', async (regex) => {
    for (const text of await texts({ regex }, 30)) expect(text).toMatch(new RegExp(`^(?:${regex})$`, 'u'));
  });

  test('choice: every text can be reached, and nothing else', async () => {
    const choice = ['yes', 'no', 'maybe "so"\n\\', '不知道', '😀 [x] {y} | z # "', 'yes, but', 'x"a', '"0'];
    const found = new Set(await texts({ choice }, 160));
    expect(found).toEqual(new Set(choice));
  });

  test('grammar', async () => {
    const grammar = 'root ::= term (("+" | "-") term)*\nterm ::= [0-9]{1,3} | "(" root ")" # nested\n';
    for (const text of await texts({ grammar }, 30)) expect(text).toMatch(/^[0-9()+-]+$/);
  });

  test('toolCalls, one or several', async () => {
    const parameters = { type: 'object', properties: { city: { enum: ['北京', 'Rome'] } }, required: ['city'] };
    const toolCalls = [
      { name: 'weather', parameters },
      { name: 'na"me', parameters: '{"type":"object","properties":{"n":true}}' },
    ];
    const call = /<tool_call>\n(\{.*\})\n<\/tool_call>/;
    for (const text of await texts({ toolCalls, parallel: false }, 20)) {
      const { name, arguments: given } = JSON.parse(call.exec(text)?.[1] ?? '');
      expect(['weather', 'na"me']).toContain(name);
      if (name === 'weather') expect(['北京', 'Rome']).toContain(given.city);
      expect(text.match(/<tool_call>/g)).toHaveLength(1);
    }
    const several = await texts({ toolCalls: toolCalls.slice(0, 1) }, 40);
    expect(several.some((text) => text.includes('</tool_call>\n<tool_call>'))).toBe(true);
  });
});

describe('masks', () => {
  test('stop ids exactly where the grammar may end; special and missing ids never', async () => {
    const matcher = await grammars.open({ regex: 'ab?' });
    const start = idsOf(await matcher.mask());
    const a = tokenizer.idOf('a') ?? -1;
    expect(start).toContain(a);
    for (const id of start) expect(tokenizer.specialIds.has(id) || id >= tokenizer.vocabSize).toBe(false);
    matcher.accept(a);
    const b = tokenizer.idOf('b') ?? -1;
    expect(new Set(idsOf(await matcher.mask()))).toEqual(new Set([b, ...tokenizer.stopIds]));
    matcher.accept(b);
    expect(idsOf(await matcher.mask())).toEqual([...tokenizer.stopIds].sort((x, y) => x - y));
    matcher.accept(tokenizer.stopIds[0] ?? -1);
    expect(idsOf(await matcher.mask())).toEqual([...tokenizer.stopIds].sort((x, y) => x - y));
    expect((await matcher.mask()).length).toBe(VOCAB / 32);
    matcher.close();
  });

  test('masks of a path are those of walking it, as far as the grammar goes along, and the position stays', async () => {
    const form = { json: { type: 'object', properties: { dose: { type: 'integer' } }, required: ['dose'] } };
    const path = tokenizer.encode('{"dose": 12}');
    const matcher = await grammars.open(form);
    const walker = await grammars.open(form);
    const expected: number[] = [];
    for (const id of path) {
      expected.push(...(await walker.mask()));
      walker.accept(id);
    }
    expected.push(...(await walker.mask()));
    expect([...(await matcher.masks(path))]).toEqual(expected);
    const words = VOCAB / 32;
    const wrong = tokenizer.idOf('z') ?? -1;
    const stop = tokenizer.stopIds[0] ?? -1;
    expect([...(await matcher.masks([...path.slice(0, 2), wrong, ...path]))]).toEqual(expected.slice(0, 3 * words));
    expect([...(await matcher.masks([...path, stop, stop]))]).toEqual(expected);
    expect([...(await matcher.mask())]).toEqual(expected.slice(0, words));
    for (const id of path) matcher.accept(id);
    expect([...(await matcher.masks([]))]).toEqual(expected.slice(-words));
    matcher.close();
    walker.close();
  });

  test('rollback is as if the tokens had never come', async () => {
    const form = { json: { type: 'object', properties: { a: { type: 'string' }, b: { type: 'number' } }, required: ['a'] } };
    const random = randomFrom(5);
    const wandering = await grammars.open(form);
    const straight = await grammars.open(form);
    for (let step = 0; step < 40; step++) {
      const pick = async () => {
        const ids = idsOf(await wandering.mask());
        return ids[Math.floor(random() * ids.length)] ?? -1;
      };
      const wrong = Math.floor(random() * 4);
      for (let i = 0; i < wrong; i++) wandering.accept(await pick());
      wandering.rollback(wrong);
      const next = await pick();
      // Sometimes without a mask between, so that the thread has not seen what is taken back.
      wandering.accept(next);
      if (step % 3 === 0) {
        wandering.rollback(1);
        wandering.accept(next);
      }
      straight.accept(next);
      expect(await wandering.mask()).toEqual(await straight.mask());
      if (tokenizer.stopIds.includes(next)) break;
    }
    expect(() => straight.rollback(1000)).toThrow(/count: expected 0 to/);
    wandering.close();
    straight.close();
  });

  test('a character split over tokens', async () => {
    const text = '𠮷野家';
    const matcher = await grammars.open({ choice: [text] });
    const single = [...Buffer.from(text)].map((byte) => {
      for (let id = 0; id < tokenizer.vocabSize; id++) {
        const bytes = tokenizer.bytesOf(id);
        if (bytes.length === 1 && bytes[0] === byte) return id;
      }
      throw new Error(`no token for byte ${byte}`);
    });
    for (const id of single) {
      expect(idsOf(await matcher.mask())).toContain(id);
      matcher.accept(id);
    }
    expect(idsOf(await matcher.mask())).toEqual([...tokenizer.stopIds].sort((x, y) => x - y));
    matcher.close();
  });

  test('100 matchers at once, each with its own state', async () => {
    const forms: StructuredOutput[] = [{ choice: ['alpha', 'beta'] }, { regex: '[0-9]{8}' }, { json: { type: 'boolean' } }];
    const results = await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const matcher = await grammars.open(forms[i % forms.length] ?? { jsonObject: true });
        const { bytes } = await walk(matcher, tokenizer, randomFrom(i + 1));
        matcher.close();
        matcher.close();
        return Buffer.from(bytes).toString();
      }),
    );
    for (const [i, text] of results.entries())
      expect(text).toMatch([/^(alpha|beta)$/, /^[0-9]{8}$/, /^(true|false)$/][i % 3] ?? /^$/);
  });
});

test('a vocabulary with special tokens for the tags of calls', async () => {
  const json = JSON.parse(readFileSync(join(nano, 'tokenizer.json'), 'utf8'));
  const tag = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  json.added_tokens.push({ ...tag, id: 6144, content: '<tool_call>' }, { ...tag, id: 6145, content: '</tool_call>' });
  json.added_tokens.push({ ...tag, id: 6146, content: '<other>' });
  const folder = folderWith({ 'tokenizer.json': json, 'tokenizer_config.json': { eos_token: '<|role_end|>' } });
  const own = await Tokenizer.load(folder);
  const tagged = new Grammars({ tokenizer: own, vocabSize: 6200, stopIds: own.stopIds });
  const call = await tagged.open({ toolCalls: [{ name: 'f' }] });
  expect(idsOf(await call.mask())).toContain(6144);
  const text = await tagged.open({ regex: '<other>' });
  expect(idsOf(await text.mask())).not.toContain(6146);
  await tagged.close();
  const decoder = own.createAnswerDecoder(true);
  expect(decoder.push([6144, 6146, 6145])).toBe('<tool_call></tool_call>');
});
