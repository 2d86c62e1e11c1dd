/** What a caller can send that is wrong, too large or too slow: it fails alone, with a reason, and nothing else notices. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AbortError, DisposedError, InvalidArgumentError } from '../../lib/errors.js';
import { Grammars } from '../../lib/grammar/matcher.js';
import { Tokenizer } from '../../lib/tokenizer.js';
import type { StructuredOutput } from '../../lib/types.js';
import { nano, root } from '../helpers/files.js';
import { idsOf } from '../helpers/grammar_walk.js';

let tokenizer: Tokenizer;
let grammars: Grammars;
const made: Grammars[] = [];
const grammarsWith = (limits: { compileMs?: number; maskMs?: number; memoryBytes?: number }) => {
  const result = new Grammars({ tokenizer, vocabSize: 6144, stopIds: tokenizer.stopIds, ...limits });
  made.push(result);
  return result;
};

beforeAll(async () => {
  tokenizer = await Tokenizer.load(nano);
  grammars = grammarsWith({});
});
afterAll(() => Promise.all(made.map((each) => each.close())));

const nested = (depth: number): object => (depth === 0 ? { type: 'null' } : { type: 'array', items: nested(depth - 1) });
const object = (properties: object) => ({ json: { type: 'object', properties } });
const slow = { regex: '(([a-z]{1,3000}){1,3000}){1,3000}' };
const fine: StructuredOutput = { choice: ['yes', 'no'] };

/** The message alone: a matcher shown in full is the whole vocabulary. */
async function failureOf(own: Grammars, form: unknown): Promise<string> {
  const opened = own.open(form as StructuredOutput);
  return opened.then(
    () => 'it opened',
    (error: Error) => error.message,
  );
}

describe('forms that are wrong', () => {
  const cases: [string, unknown, RegExp][] = [
    ['nothing', {}, /^structured: expected an object with one of json, .* found none$/],
    ['not an object', 'json', /^structured: expected an object/],
    ['two at once', { regex: 'a', choice: ['a'] }, /found regex and choice$/],
    ['unknown', { xml: 'a' }, /found xml$/],
    ['jsonObject: false', { jsonObject: false }, /^structured.jsonObject: expected true$/],
    ['text that is not JSON', { json: '{' }, /^structured.json: not JSON at offset 1/],
    ['a schema that is a list', { json: [] }, /^structured.json: expected a schema/],
    ['a schema of nothing', { json: 'false' }, /false: it cannot accept any value/],
    ['a function in a schema', object({ a: () => 1 }), /^structured.json: expected a JSON value, found function$/],
    ['not', object({ a: { not: {} } }), /^structured.json.properties.a: not is not supported/],
    ['multipleOf', { json: { type: 'integer', multipleOf: 5 } }, /^structured.json: multipleOf is not supported/],
    ['uniqueItems', { json: { type: 'array', uniqueItems: true } }, /uniqueItems is not supported/],
    ['if', { json: { anyOf: [{ if: {} }] } }, /^structured.json.anyOf\[0\]: if is not supported/],
    ['two of a kind', { json: { $ref: '#/$defs/a', anyOf: [{}] } }, /anyOf beside \$ref is not supported/],
    ['properties beside anyOf', { json: { anyOf: [{}], properties: {} } }, /properties beside anyOf/],
    ['allOf of two', { json: { allOf: [{}, {}] } }, /allOf of more than one schema/],
    ['an unknown type', { json: { type: 'date' } }, /Unsupported type "date"/],
    ['a reference to nothing', { json: { $ref: '#/$defs/a' } }, /Cannot find field \$defs/],
    ['a reference elsewhere', { json: { $ref: 'https://example.org/a' } }, /URI should either be/],
    ['a reference to itself', { json: { $ref: '#' } }, /no text fits it/],
    ['... and again', { json: { $ref: '#' } }, /no text fits it/],
    ['minimum above maximum', { json: { type: 'integer', minimum: 2, maximum: 1 } }, /minimum greater than maximum/],
    ['a minimum in words', { json: { type: 'integer', minimum: 'two' } }, /^structured.json.minimum: expected a number$/],
    [
      'decimals between bounds that cross',
      { json: { type: 'number', minimum: 2, maximum: 1.5 } },
      /^structured.json: no number lies/,
    ],
    ['required that is no list', { json: { required: 'a' } }, /^structured.json.required: expected a list of names$/],
    ['anyOf of none', { json: { anyOf: [] } }, /^structured.json.anyOf: expected a list of schemas$/],
    ['a broken pattern', { json: { type: 'string', pattern: '(' } }, /parenthesis/],
    ['pattern with a length', { json: { type: 'string', pattern: 'a+', maxLength: 3 } }, /not supported yet/],
    ['a broken regex', { regex: '(a' }, /parenthesis is not closed/],
    ['a lookahead', { regex: '(?=a)a' }, /looking ahead or behind is not supported/],
    ['regex that is no text', { regex: 5 }, /^structured.regex: expected text, found number$/],
    ['a broken grammar', { grammar: 'root ::= (' }, /line 1, column/],
    ['a grammar without root', { grammar: 'a ::= "b"' }, /root rule/],
    ['an undefined rule', { grammar: 'root ::= a' }, /Rule "a" is not defined/],
    ['no choice', { choice: [] }, /^structured.choice: expected a list of texts$/],
    ['a choice that is no text', { choice: ['a', 5] }, /^structured.choice\[1\]: expected text, found number$/],
    ['half a character', { choice: ['\ud800'] }, /lone surrogate/],
    ['parallel with another form', { regex: 'a', parallel: true }, /^structured.parallel: goes with toolCalls alone$/],
    ['no tool', { toolCalls: [] }, /^structured.toolCalls: expected a list of tools$/],
    ['a tool without a name', { toolCalls: [{}] }, /^structured.toolCalls\[0\].name: expected text/],
    ['a tool with a bad schema', { toolCalls: [{ name: 'f', parameters: { not: {} } }] }, /toolCalls\[0\].parameters: not is/],
  ];
  test.each(cases)('%s', async (_, form, message) => {
    const error = await grammars.open(form as StructuredOutput).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(InvalidArgumentError);
    expect((error as InvalidArgumentError).message).toMatch(message);
    expect((error as InvalidArgumentError).argument).toMatch(/^structured/);
  });

  test('and afterwards a good one works', async () => {
    const matcher = await grammars.open(fine);
    expect(idsOf(await matcher.mask()).length).toBeGreaterThan(0);
    matcher.close();
  });
});

describe('limits', () => {
  test.each([
    ['a long schema', { json: { enum: ['x'.repeat(140_000)] } }, /at most 131072 characters/],
    ['a long regex', { regex: 'a'.repeat(10_000) }, /^structured.regex: expected at most 8192 characters, found 10000$/],
    ['many choices', { choice: Array.from({ length: 5000 }, (_, i) => `c${i}`) }, /at most 4096 texts, found 5000$/],
    ['deep nesting', { json: nested(200) }, /nested more than 128 levels/],
    ['too deep for the library', { json: nested(120) }, /^structured: /],
    ['parentheses without end', { grammar: `root ::= ${'('.repeat(100_000)}` }, /^structured: /],
  ])('%s', async (_, form, message) => {
    expect(await failureOf(grammars, form)).toMatch(message);
  });

  test('a grammar that takes too long to compile fails alone', async () => {
    const hasty = grammarsWith({ compileMs: 3000 });
    const before = await hasty.open(fine);
    const failing = expect(hasty.open(slow)).rejects.toThrow(/^structured: it takes longer than 3000 ms$/);
    const [mask] = await Promise.all([before.mask(), failing]);
    expect(idsOf(mask).length).toBeGreaterThan(0);
    const after = await hasty.open({ regex: '[0-9]' });
    expect(idsOf(await after.mask()).length).toBeGreaterThan(0);
  });

  test('a grammar that needs too much memory fails alone', async () => {
    const small = grammarsWith({ memoryBytes: 18 * 2 ** 20 });
    const choice = Array.from({ length: 4000 }, (_, i) => `choice number ${i * 7919}`);
    expect(await failureOf(small, { choice })).toMatch(/^structured: it needs more than 18 MiB of memory$/);
    expect(idsOf(await (await small.open(fine)).mask()).length).toBeGreaterThan(0);
  });

  test('a mask that takes too long fails alone: the other matchers of its thread move on', async () => {
    const hasty = grammarsWith({ maskMs: 2000 });
    const innocent = { regex: 'ab[0-9]{2}' };
    // As many grammars as threads, so that the next one shares a thread with the one that has fewest matchers.
    const others: StructuredOutput[] = [fine, fine, { regex: 'c' }, { regex: 'c' }];
    const neighbour = await hasty.open(innocent);
    for (const form of others) await hasty.open(form);
    const guilty = await hasty.open({ grammar: 'root ::= root root | "a"' });
    const a = tokenizer.idOf('a') ?? -1;
    neighbour.accept(a);
    for (let i = 0; i < 20_000; i++) guilty.accept(a);
    const failing = expect(guilty.mask()).rejects.toThrow(/^structured: it takes longer than 2000 ms$/);
    const [mask] = await Promise.all([neighbour.mask(), failing]);
    expect(idsOf(mask)).toContain(tokenizer.idOf('b'));
    expect(idsOf(mask)).not.toContain(a);
    guilty.close();
    neighbour.accept(tokenizer.idOf('b') ?? -1);
    expect(idsOf(await neighbour.mask())).toContain(tokenizer.idOf('7'));
  });

  test('a token that the grammar does not allow', async () => {
    const matcher = await grammars.open(fine);
    matcher.accept(tokenizer.idOf('z') ?? -1);
    await expect(matcher.mask()).rejects.toThrow(/does not continue it/);
  });
});

describe('ends', () => {
  test('aborted before and while it waits', async () => {
    const own = grammarsWith({});
    await expect(own.open(fine, { signal: AbortSignal.abort() })).rejects.toBeInstanceOf(AbortError);
    const controller = new AbortController();
    const waiting = own.open({ regex: '[a-z]{1,40}' }, { signal: controller.signal });
    controller.abort();
    await expect(waiting).rejects.toBeInstanceOf(AbortError);
    expect(idsOf(await (await own.open(fine)).mask()).length).toBeGreaterThan(0);
  });

  test('closed: what waits fails, and what comes later', async () => {
    const own = grammarsWith({});
    const matcher = await own.open(fine);
    const waiting = own.open(slow).catch((error: unknown) => error);
    await own.close();
    expect(await waiting).toBeInstanceOf(DisposedError);
    await expect(matcher.mask()).rejects.toBeInstanceOf(DisposedError);
    await expect(own.open(fine)).rejects.toBeInstanceOf(DisposedError);
    matcher.close();
    await own.close();
  });

  test('nothing keeps a process alive', () => {
    const script = join(root, 'test/helpers/grammar_exit.mjs');
    expect(execFileSync(process.execPath, [script, nano], { encoding: 'utf8', timeout: 50_000 })).toBe('open\n');
  });

  test('a closed matcher has no mask', async () => {
    const matcher = await grammars.open(fine);
    matcher.close();
    await expect(matcher.mask()).rejects.toBeInstanceOf(DisposedError);
  });
});
