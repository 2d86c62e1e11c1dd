/** The event parser, fed with every way a network could cut its bytes. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { SseParser } from '../../lib/bench/sse.js';

const parse = (pieces: Uint8Array[]) => {
  const parser = new SseParser();
  return pieces.flatMap((piece) => parser.push(piece));
};
const bytes = (text: string) => new TextEncoder().encode(text);

test.each([
  ['one event', 'data: a\n\n', ['a']],
  ['no space after the colon', 'data:a\n\n', ['a']],
  ['only the first space is taken', 'data:  a\n\n', [' a']],
  ['several lines of data', 'data: a\ndata: b\n\n', ['a\nb']],
  ['carriage returns', 'data: a\r\rdata: b\r\n\r\n', ['a', 'b']],
  ['comments, names and ids', ': ping\nevent: x\nid: 3\ndata: a\n\n: ping\n\n', ['a']],
  ['a byte order mark', '\ufeffdata: a\n\n', ['a']],
  ['empty data', 'data\n\ndata:\n\n', ['', '']],
  ['an event without its end', 'data: a\n\ndata: b\n', ['a']],
])('%s', (_, text, events) => {
  expect(parse([bytes(text)])).toEqual(events);
});

test('where bytes are cut makes no difference', () => {
  const text = ': 你好\r\ndata: 糖尿病 👩‍⚕️\r\n\r\ndata: {"a":"b"}\n\ndata: x\rdata: y\r\rdata: [DONE]\n\n';
  const whole = bytes(text);
  const expected = ['糖尿病 👩‍⚕️', '{"a":"b"}', 'x\ny', '[DONE]'];
  expect(parse([whole])).toEqual(expected);
  expect(parse(Array.from(whole, (byte) => Uint8Array.of(byte)))).toEqual(expected);
  fc.assert(
    fc.property(fc.array(fc.nat(whole.length)), (cuts) => {
      const places = [0, ...cuts.sort((a, b) => a - b), whole.length];
      const pieces = places.slice(1).map((end, i) => whole.subarray(places[i] ?? 0, end));
      expect(parse(pieces)).toEqual(expected);
    }),
  );
});
