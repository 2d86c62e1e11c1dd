import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { InvalidArgumentError, JsonNumber, type JsonValue, parseJson } from '../../lib/index.js';

/** Back to what JSON.parse gives. */
function plain(value: JsonValue): unknown {
  if (value instanceof JsonNumber) return Number(value.text);
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, plain(item)]));
  return Array.isArray(value) ? value.map(plain) : value;
}

describe('lossless JSON', () => {
  test('reads what JSON.parse reads', () => {
    fc.assert(
      fc.property(fc.json(), fc.boolean(), (text, spaced) => {
        const written = spaced ? JSON.stringify(JSON.parse(text), null, 2) : text;
        expect(plain(parseJson(written))).toEqual(JSON.parse(written));
      }),
    );
  });

  test('refuses what JSON.parse refuses', () => {
    fc.assert(
      fc.property(fc.json(), fc.nat(), fc.string({ maxLength: 2 }), (text, at, inserted) => {
        const broken = text.slice(0, at % (text.length + 1)) + inserted + text.slice((at % (text.length + 1)) + 1);
        let valid = true;
        try {
          JSON.parse(broken);
        } catch {
          valid = false;
        }
        if (valid) expect(plain(parseJson(broken))).toEqual(JSON.parse(broken));
        else expect(() => parseJson(broken)).toThrow(InvalidArgumentError);
      }),
      { numRuns: 1000 },
    );
  });

  test('keeps number text and key order', () => {
    const value = parseJson('{"10": 1.0, "2": 1e3, "a": 12345678901234567890, "-": -0.0}') as Map<string, JsonNumber>;
    expect([...value].map(([key, number]) => `${key}=${number}`)).toEqual([
      '10=1.0',
      '2=1e3',
      'a=12345678901234567890',
      '-=-0.0',
    ]);
  });

  test('of a repeated key the last value stays, in the first place', () => {
    expect([...(parseJson('{"a": 1, "b": 2, "a": 3}') as Map<string, JsonNumber>)].map(String)).toEqual(['a,3', 'b,2']);
  });

  test('says where it failed and refuses deep nesting without running out of stack', () => {
    expect(() => parseJson('{"a": tru}')).toThrow('offset 6');
    expect(() => parseJson('[1, 2')).toThrow('the end of the text');
    expect(() => parseJson('['.repeat(1_000_000))).toThrow('nesting');
    expect(() => new JsonNumber('1.')).toThrow(InvalidArgumentError);
  });
});
