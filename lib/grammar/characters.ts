/**
 * Sets of characters as the grammar library matches them. It knows classes of ASCII characters, classes that leave out
 * some of those, and classes of raw bytes; a class such as [一-龥] it takes for something else. Here every other set
 * becomes the byte sequences of its UTF-8.
 */

/** Code points from first to last, ends included; sorted, disjoint and not adjacent. */
export type CharacterSet = readonly (readonly [first: number, last: number])[];

export const MAX_CODE_POINT = 0x10ffff;
const ANY_BEYOND_ASCII: CharacterSet = [[0x80, MAX_CODE_POINT]];

/** How a notation writes what a set needs. */
export interface Notation {
  choice(parts: string[]): string;
  sequence(parts: string[]): string;
  /** One character, outside of brackets. */
  literal(codePoint: number): string;
}

export function setOf(ranges: Iterable<readonly [number, number]>): CharacterSet {
  const sorted = [...ranges].sort(([a], [b]) => a - b);
  const result: [number, number][] = [];
  for (const [first, last] of sorted) {
    const before = result.at(-1);
    if (before !== undefined && first <= before[1] + 1) before[1] = Math.max(before[1], last);
    else result.push([first, last]);
  }
  return result;
}

export function complementOf(set: CharacterSet): CharacterSet {
  const result: [number, number][] = [];
  let next = 0;
  for (const [first, last] of set) {
    if (first > next) result.push([next, first - 1]);
    next = last + 1;
  }
  if (next <= MAX_CODE_POINT) result.push([next, MAX_CODE_POINT]);
  return result;
}

export function within(set: CharacterSet, first: number, last: number): CharacterSet {
  const cut = set.map(([a, b]) => [Math.max(a, first), Math.min(b, last)] as const);
  return cut.filter(([a, b]) => a <= b);
}

export function without(set: CharacterSet, other: CharacterSet): CharacterSet {
  return complementOf(setOf([...complementOf(set), ...other]));
}

/** The set in the library's terms; undefined for the empty set. */
export function written(set: CharacterSet, notation: Notation): string | undefined {
  const [only] = set;
  if (only === undefined) return undefined;
  if (set.length === 1 && only[0] === only[1]) return notation.literal(only[0]);
  const ascii = within(set, 0, 0x7f);
  const beyond = within(set, 0x80, MAX_CODE_POINT);
  const parts: string[] = [];
  if (equal(beyond, ANY_BEYOND_ASCII)) {
    const left = within(complementOf(ascii), 0, 0x7f);
    if (left.length > 0) return `[^${members(left)}]`;
    parts.push('[^\\x00-\\x7f]');
  } else {
    for (const [first, last] of beyond)
      parts.push(...utf8Sequences(first, last).map((bytes) => notation.sequence(bytes.map(byteClass))));
  }
  if (ascii.length > 0) parts.push(`[${members(ascii)}]`);
  return parts.length === 1 ? parts[0] : notation.choice(parts);
}

function equal(a: CharacterSet, b: CharacterSet): boolean {
  return a.length === b.length && a.every(([first, last], i) => first === b[i]?.[0] && last === b[i]?.[1]);
}

function members(set: CharacterSet): string {
  return set.map(([first, last]) => (first === last ? hex(first) : `${hex(first)}-${hex(last)}`)).join('');
}

/** A class of one raw byte is written twice: written once it would be the character of that number. */
function byteClass([first, last]: readonly [number, number]): string {
  return first === last ? `[${hex(first)}${hex(first)}]` : `[${hex(first)}-${hex(last)}]`;
}

function hex(byte: number): string {
  return `\\x${byte.toString(16).padStart(2, '0')}`;
}

type ByteRanges = (readonly [number, number])[];

/** Sequences of byte ranges that together are the UTF-8 of these code points, surrogates left out. */
export function utf8Sequences(first: number, last: number): ByteRanges[] {
  const blocks: CharacterSet = [
    [0, 0x7f],
    [0x80, 0x7ff],
    [0x800, 0xd7ff],
    [0xe000, 0xffff],
    [0x10000, MAX_CODE_POINT],
  ];
  return blocks.flatMap(([blockFirst, blockLast]) => {
    const [a, b] = [Math.max(first, blockFirst), Math.min(last, blockLast)];
    return a <= b ? sameLength(bytesOf(a), bytesOf(b)) : [];
  });
}

/** Splits where the bytes after the first differing one do not run over all their values. */
function sameLength(from: number[], to: number[]): ByteRanges[] {
  const [a = 0, ...fromRest] = from;
  const [b = 0, ...toRest] = to;
  if (fromRest.length === 0) return [[[a, b]]];
  if (a === b) return sameLength(fromRest, toRest).map((rest) => [[a, a], ...rest]);
  const result: ByteRanges[] = [];
  const [lowest, highest] = [fromRest.map(() => 0x80), fromRest.map(() => 0xbf)];
  const startsFull = fromRest.every((byte) => byte === 0x80);
  const endsFull = toRest.every((byte) => byte === 0xbf);
  if (!startsFull) result.push(...sameLength([a, ...fromRest], [a, ...highest]));
  const [middleFirst, middleLast] = [startsFull ? a : a + 1, endsFull ? b : b - 1];
  if (middleFirst <= middleLast) {
    result.push([[middleFirst, middleLast], ...fromRest.map((): readonly [number, number] => [0x80, 0xbf])]);
  }
  if (!endsFull) result.push(...sameLength([b, ...lowest], [b, ...toRest]));
  return result;
}

function bytesOf(codePoint: number): number[] {
  return [...new TextEncoder().encode(String.fromCodePoint(codePoint))];
}
