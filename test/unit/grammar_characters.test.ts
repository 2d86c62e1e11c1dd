/** Patterns and classes of characters: what JavaScript's own regular expressions match is what the grammars let through. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { InvalidArgumentError } from '../../lib/errors.js';
import { complementOf, setOf, utf8Sequences } from '../../lib/grammar/characters.js';
import { Grammars } from '../../lib/grammar/matcher.js';
import { readRegex } from '../../lib/grammar/regex.js';
import { Tokenizer } from '../../lib/tokenizer.js';
import type { StructuredOutput } from '../../lib/types.js';
import { nano } from '../helpers/files.js';

let grammars: Grammars;
let stopId: number;
/** The token of each single byte. */
const idOfByte = new Map<number, number>();

beforeAll(async () => {
  const tokenizer = await Tokenizer.load(nano);
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    const [byte, more] = tokenizer.bytesOf(id);
    if (byte !== undefined && more === undefined && !tokenizer.specialIds.has(id)) idOfByte.set(byte, id);
  }
  expect(idOfByte.size).toBe(256);
  stopId = tokenizer.stopIds[0] ?? -1;
  grammars = new Grammars({ tokenizer, vocabSize: 6144, stopIds: tokenizer.stopIds });
});
afterAll(() => grammars.close());

/** Whether each text, byte by byte, is let through to its end. */
async function accepted(form: StructuredOutput, texts: string[]): Promise<string[]> {
  const matcher = await grammars.open(form);
  const allows = (mask: Int32Array, id: number) => (((mask[id >> 5] ?? 0) >>> (id & 31)) & 1) === 1;
  const found: string[] = [];
  for (const text of texts) {
    let taken = 0;
    let fits = true;
    for (const byte of Buffer.from(text)) {
      const id = idOfByte.get(byte) ?? -1;
      fits = allows(await matcher.mask(), id);
      if (!fits) break;
      matcher.accept(id);
      taken += 1;
    }
    if (fits && allows(await matcher.mask(), stopId)) found.push(text);
    matcher.rollback(taken);
  }
  matcher.close();
  return found;
}

const TEXTS = [
  ...['', 'a', 'b', 'A', 'z', '7', '_', '-', ' ', '\n', '"', '\\', '/', '\u0001', 'é', 'ß', 'à', '北', '一', '龥', '㐀', '京'],
  ...['😀', '🙏', '￿', '\u00a0', 'ab', 'aa', 'aaa', '北京', '12', '1-2', 'a北', 'a"b', 'ä', 'x\ny', '...', '1.5', '(a)', ']'],
];

const PATTERNS = [
  ...['.', '..', '.*', '[一-龥]', '[一-龥]+', '[^一-龥]', '[àé北]', '[a北]', '[a-z京-北]*', '[^a]', '[^a\\n]*', 'é|ß', '[é]'],
  ...['\\d+', '\\w', '\\W', '\\s', '\\S', '\\D', '[\\s\\S]', '[\\d-]+', '[\\w.]+', '\\u5317', '\\u{1F600}', '\\uD83D\\uDE00'],
  ...[
    '[\\u{1F600}-\\u{1F64F}]',
    '\\x61',
    'a|b|',
    '(a|b)*',
    '(?:a)',
    '(?<name>a)b',
    'a{2}',
    'a{2,}',
    'a{0,2}',
    '^a$',
    '^(?:a|^b)$',
  ],
  ...[
    '(^a$)',
    '"',
    '\\\\',
    '\\/',
    '[\\]]',
    '[^\\]]',
    '\\(a\\)',
    '\\.{3}',
    'a+?',
    '[a-]',
    '[-a]',
    '\\n',
    'a.b',
    '',
    '[$^]',
    '\\0|a',
  ],
];

describe('patterns', () => {
  test.each(PATTERNS)('regex %s', async (pattern) => {
    const own = new RegExp(`^(?:${pattern})$`, 'u');
    expect(await accepted({ regex: pattern }, TEXTS)).toEqual(TEXTS.filter((text) => own.test(text)));
  });

  test.each(PATTERNS)('a JSON string of pattern %s', async (pattern) => {
    const own = new RegExp(`^(?:${pattern})$`, 'u');
    const json = TEXTS.map((text) => JSON.stringify(text)).filter((text) => !text.includes('\\u'));
    const expected = json.filter((text) => own.test(JSON.parse(text)));
    expect(await accepted({ json: { type: 'string', pattern } }, json)).toEqual(expected);
    const raw = ['"a\nb"', '"\n"', '"""', '"\\"', '"a"b"'];
    expect(await accepted({ json: { type: 'string', pattern } }, raw)).toEqual([]);
  });

  test.each([
    ...[
      '(',
      ')',
      'a)',
      '[',
      '[a',
      '[b-a]',
      '*',
      'a**',
      '(?=a)',
      '(?!a)',
      '(?<=a)b',
      '\\1',
      '\\k<a>',
      '\\p{L}',
      '\\b',
      '\\',
      'a{2,1}',
    ],
    ...['a{', '\\x1', '\\u12', '\\u{110000}', '\\ud800', 'a^', '$a', '(a$)*', '^*', '[^\\s\\S]', '(?<', '\\c'],
  ])('%s is refused', (pattern) => {
    expect(() => readRegex(pattern, 'structured.regex')).toThrow(InvalidArgumentError);
    expect(() => readRegex(pattern, 'structured.regex')).toThrow(/^structured.regex: /);
  });

  test('names of properties by pattern', async () => {
    const json = { type: 'object', patternProperties: { '^[一-龥"]{1,2}$': { type: 'integer' } }, additionalProperties: false };
    const texts = ['{}', '{"北京": 1}', '{"\\"": 1}', '{"a": 1}', '{"北京京": 1}', '{""": 1}'];
    expect(await accepted({ json }, texts)).toEqual(['{}', '{"北京": 1}', '{"\\"": 1}']);
  });

  test('classes in a grammar', async () => {
    const classes = [
      '[一-龥]',
      '[^一-龥"]',
      '[\\u4e00-\\u9fa5a]',
      '[\\U0001F600-\\U0001F64F]',
      '[é]',
      '[^\\xe9]',
      '[a-z\\]\\-é]',
    ];
    for (const each of classes) {
      const own = new RegExp(`^${each.replace(/\\U([0-9A-F]{8})/g, (_, digits) => `\\u{${digits}}`)}$`, 'u');
      const grammar = `root ::= one # [not] a "class"\none ::= ${each} | "[一-龥]" | "\\"#["`;
      expect(await accepted({ grammar }, [...TEXTS, '[一-龥]', '"#[']), each).toEqual([
        ...TEXTS.filter((text) => own.test(text)),
        '[一-龥]',
        '"#[',
      ]);
    }
  });
});

describe('sets', () => {
  const codePoint = fc.integer({ min: 0, max: 0x10ffff }).filter((point) => point < 0xd800 || point > 0xdfff);

  test('UTF-8 sequences of a range are those of its characters', () => {
    fc.assert(
      fc.property(codePoint, codePoint, fc.array(codePoint, { maxLength: 20 }), (a, b, others) => {
        const [first, last] = [Math.min(a, b), Math.max(a, b)];
        const sequences = utf8Sequences(first, last);
        for (const point of [a, b, first - 1, last + 1, Math.floor((a + b) / 2), ...others]) {
          if (point < 0 || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) continue;
          const bytes = Buffer.from(String.fromCodePoint(point));
          const matching = sequences.filter(
            (ranges) =>
              ranges.length === bytes.length &&
              ranges.every(([low, high], i) => low <= (bytes[i] ?? 0) && (bytes[i] ?? 0) <= high),
          );
          expect(matching.length).toBe(point >= first && point <= last ? 1 : 0);
        }
      }),
    );
  });

  test('the complement of the complement is the set', () => {
    const range = fc.tuple(codePoint, codePoint).map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const);
    fc.assert(
      fc.property(fc.array(range), (ranges) => {
        expect(complementOf(complementOf(setOf(ranges)))).toEqual(setOf(ranges));
      }),
    );
  });
});
