import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { StopStrings } from '../../lib/text/stop_strings.js';

/** What a matcher should do, by looking at the whole text one character at a time. */
function oracle(text: string, stops: string[]): { text: string; stop?: string } {
  for (let end = 1; end <= text.length; end++) {
    const ending = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)[0];
    if (ending !== undefined) return { text: text.slice(0, end - ending.length), stop: ending };
  }
  return { text };
}

function feed(pieces: string[], stops: string[], keep = false): { text: string; stop?: string } {
  const matcher = new StopStrings(stops, keep);
  let text = '';
  for (const piece of pieces) {
    const step = matcher.push(piece, true);
    text += step.text;
    if (step.match) return { text, stop: step.match.stop };
  }
  return { text: text + matcher.flush() };
}

const word = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 4 });

describe('stop strings', () => {
  test('the first to end wins, wherever the text was cut', () => {
    fc.assert(
      fc.property(fc.array(word, { maxLength: 12 }), fc.array(word, { minLength: 1, maxLength: 3 }), (pieces, stops) => {
        expect(feed(pieces, stops)).toEqual(oracle(pieces.join(''), stops));
      }),
      { numRuns: 2000 },
    );
  });

  test('text is held back only while it could become a stop string', () => {
    const matcher = new StopStrings(['\n\nUser:'], false);
    expect(matcher.push('Rest.', true).text).toBe('Rest.');
    expect(matcher.push(' And\n', true).text).toBe(' And');
    expect(matcher.push('\nUs', true).text).toBe('');
    expect(matcher.push('e tea', true).text).toBe('\n\nUse tea');
  });

  test('includeStop keeps the string and nothing after it', () => {
    expect(feed(['one EN', 'D two'], ['END'], true)).toEqual({ text: 'one END', stop: 'END' });
  });

  test('strings that end while inactive are text; one that ends later still counts', () => {
    const matcher = new StopStrings(['STOP'], false);
    expect(matcher.push('STOP ST', false)).toEqual({ text: 'STOP ' });
    expect(matcher.push('OP', true)).toEqual({ text: '', match: { stop: 'STOP' } });
  });
});
