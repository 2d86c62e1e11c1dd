import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { CheckpointError, InvalidArgumentError, NotFoundError, Tokenizer } from '../../lib/index.js';
import { WORKER_CHARACTERS } from '../../lib/text/encoder.js';
import { folderWith, type GreedyPrompt, golden, nano } from '../helpers/files.js';

const tokenizerJson = JSON.parse(readFileSync(join(nano, 'tokenizer.json'), 'utf8'));
const { prompts } = JSON.parse(readFileSync(golden('nano/greedy.json'), 'utf8')) as { prompts: GreedyPrompt[] };

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(nano);
});

/** Text of whole characters, among them ones that take several tokens, and spellings of special tokens. */
const text = fc
  .array(
    fc.oneof(
      fc.string({ unit: 'binary' }),
      fc.constantFrom('<role>', '</role>', '<|role_end|>', '<|role', '头痛', '👩‍👩‍👧', '\r\n', "don't 42", '\u0000', '\ufeff'),
    ),
    { maxLength: 8 },
  )
  .map((parts) => parts.join(''));

describe('tokenizer', () => {
  test('golden prompts', () => {
    expect(prompts.length).toBe(8);
    for (const prompt of prompts) {
      expect(tokenizer.encode(prompt.text)).toEqual(prompt.prompt_ids);
      expect(tokenizer.decode(prompt.greedy_ids)).toBe(prompt.greedy_text);
    }
  });

  test('same ids as the tokenizer package with its own added tokens', () => {
    const library = new Library(tokenizerJson, {});
    fc.assert(
      fc.property(text, (value) => {
        expect(tokenizer.encode(value)).toEqual(library.encode(value).ids);
      }),
      { numRuns: 500 },
    );
  });

  test('decoding gives back the text, streamed one id at a time or at once', () => {
    fc.assert(
      fc.property(text, fc.boolean(), (value, special) => {
        const ids = tokenizer.encode(value, { special });
        expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(value);
        const decoder = tokenizer.createDecoder({ skipSpecial: false });
        const pieces = ids.map((id) => decoder.push(id));
        expect(pieces.join('') + decoder.flush()).toBe(value);
        // A character that is split over tokens comes out whole, so no piece ends in a replacement character of its own.
        if (!value.includes('\ufffd')) expect(pieces.join('')).not.toContain('\ufffd');
      }),
      { numRuns: 500 },
    );
  });

  test('special tokens: plain text when not wanted, skipped by id on the way back', () => {
    const ids = tokenizer.encode('<role>x<|role_end|>', { special: false });
    expect(ids.some((id) => tokenizer.specialIds.has(id))).toBe(false);
    expect(tokenizer.decode(ids)).toBe('<role>x<|role_end|>');
    expect(tokenizer.decode(tokenizer.encode('<role>x<|role_end|>'))).toBe('x');
    expect(tokenizer.decode([])).toBe('');
    expect(tokenizer.encode('')).toEqual([]);
  });

  test('ids of the demo model', () => {
    const { vocabSize, bosId, eosId, padId, stopIds } = tokenizer;
    expect({ vocabSize, bosId, eosId, padId }).toEqual({ vocabSize: 6144, bosId: 6137, eosId: 6143, padId: 6138 });
    expect([...stopIds].sort()).toEqual([6138, 6143]);
  });

  test('bad ids are refused by value; a decoder passes over ids of a padded vocabulary', () => {
    for (const id of [-1, 6144, 1.5, Number.NaN]) {
      expect(() => tokenizer.decode([1, id])).toThrow(InvalidArgumentError);
    }
    expect(tokenizer.createDecoder().push([32, 100_000])).toBe('A');
  });

  test('long text is encoded in a worker: same ids, and the event loop goes on', async () => {
    const long = 'The patient has had a headache since Monday. '.repeat(6_000);
    expect(long.length).toBeGreaterThan(10 * WORKER_CHARACTERS);
    let longest = 0;
    let last = performance.now();
    const timer = setInterval(() => {
      longest = Math.max(longest, performance.now() - last);
      last = performance.now();
    }, 5);
    const start = performance.now();
    const ids = await tokenizer.encodeAsync(long);
    const took = performance.now() - start;
    clearInterval(timer);
    expect(longest).toBeLessThan(took / 2);
    expect(tokenizer.decode(ids)).toBe(long);
    expect(ids).toEqual(tokenizer.encode(long));
  });

  test('added tokens that take white space along or want word borders', async () => {
    const added = [
      { id: 6144, content: '<mask>', lstrip: true, rstrip: true },
      { id: 6145, content: 'dose', single_word: true },
    ];
    const own = { ...tokenizerJson, added_tokens: [...tokenizerJson.added_tokens, ...added] };
    const changed = await Tokenizer.load(folderWith({ 'tokenizer.json': own }));
    expect(changed.encode('a  <mask> b').map((id) => changed.decode([id], { skipSpecial: false }))).toEqual([
      'a',
      '<mask>',
      'b',
    ]);
    expect(changed.encode('dose doses').filter((id) => id === 6145).length).toBe(1);
  });

  test('a post-processor that adds bos adds it to whole texts and not to conversations', async () => {
    const post_processor = {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<|startoftext|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      special_tokens: { '<|startoftext|>': { id: '<|startoftext|>', ids: [6137], tokens: ['<|startoftext|>'] } },
    };
    const changed = await Tokenizer.load(folderWith({ 'tokenizer.json': { ...tokenizerJson, post_processor } }));
    expect(changed.encode('A')).toEqual([6137, 32]);
    expect(changed.encode('A', { special: false })).toEqual([32]);
    expect((await changed.encodeChat([{ role: 'user', content: 'A' }]))[0]).toBe(6141);
  });
});

describe('a tokenizer.json that is not one', () => {
  const model = tokenizerJson.model;
  const cases: [name: string, content: string | object, message: string][] = [
    ['not JSON', '{', 'not JSON'],
    ['not an object', '[]', 'an array'],
    ['empty', '', 'not JSON'],
    ['no model', {}, 'model: expected an object, found nothing'],
    ['another model type', { model: { type: 'WordPiece', vocab: {} } }, 'model.type: expected "BPE", found "WordPiece"'],
    ['no vocabulary', { model: { type: 'BPE', merges: [] } }, 'model.vocab: expected an object, found nothing'],
    ['ids that are none', { ...tokenizerJson, model: { ...model, vocab: { a: -1 } } }, 'model.vocab["a"]'],
    ['huge ids', { ...tokenizerJson, model: { ...model, vocab: { a: 1e12 } } }, 'model.vocab["a"]'],
    ['two tokens of one id', { ...tokenizerJson, model: { ...model, vocab: { a: 1, b: 1 } } }, 'model.vocab["b"]'],
    ['merges that are none', { ...tokenizerJson, model: { ...model, merges: ['a b', 7] } }, 'model.merges[1]'],
    ['added tokens that are none', { ...tokenizerJson, added_tokens: [{ id: 'x' }] }, 'added_tokens[0].id'],
    ['another decoder', { ...tokenizerJson, decoder: { type: 'Metaspace' } }, 'decoder: expected ByteLevel, found "Metaspace"'],
    [
      'a split without a pattern',
      { ...tokenizerJson, pre_tokenizer: { type: 'Split', pattern: {} } },
      'expected Regex or String',
    ],
    ['an unknown pre-tokenizer', { ...tokenizerJson, pre_tokenizer: { type: 'Nonsense' } }, 'cannot be built'],
    [
      'a regular expression that is none',
      { ...tokenizerJson, pre_tokenizer: { type: 'Split', pattern: { Regex: '(' } } },
      'cannot be built',
    ],
    ['nesting without end', `{"model": ${'['.repeat(200_000)}${']'.repeat(200_000)}}`, 'model: expected an object'],
  ];

  test.each(cases)('%s', async (_, content, message) => {
    const loading = Tokenizer.load(folderWith({ 'tokenizer.json': content }));
    await expect(loading).rejects.toThrow(CheckpointError);
    await expect(loading).rejects.toThrow(message);
    await expect(loading).rejects.toThrow('tokenizer.json');
  });

  test('random damage gives a typed error or a tokenizer, never a crash', async () => {
    const small = JSON.stringify({ ...tokenizerJson, model: { ...model, vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'] } });
    await fc.assert(
      fc.asyncProperty(fc.nat(), fc.string({ maxLength: 3 }), fc.nat(20), async (at, inserted, removed) => {
        const start = at % small.length;
        const folder = folderWith({ 'tokenizer.json': small.slice(0, start) + inserted + small.slice(start + removed) });
        try {
          (await Tokenizer.load(folder)).encode('a b');
        } catch (error) {
          expect(error).toBeInstanceOf(CheckpointError);
        }
      }),
      { numRuns: 300 },
    );
  });

  test('no file', async () => {
    await expect(Tokenizer.load(folderWith({}))).rejects.toThrow(NotFoundError);
    await expect(Tokenizer.load('/no/such/folder')).rejects.toThrow('/no/such/folder/tokenizer.json');
  });
});
