/**
 * Decimals between two bounds as a pattern, since the grammar library's own lets in numbers beyond them. Written in what
 * regular expressions and EBNF have in common: classes, parentheses, `|`, `*` and `?`.
 */
import { JsonNumber } from '../json.js';

export interface Bound {
  value: JsonNumber;
  exclusive: boolean;
}

/** A number without sign: its digits before and after the point, without needless zeros; `exclusive` leaves it out. */
interface Side {
  whole: string;
  fraction: string;
  exclusive: boolean;
}

const MAX_DIGITS = 40;
const NOTHING: string | undefined = undefined;
const ANY_WHOLE = '([0]|[1-9][0-9]*)';
const SOME_DIGITS = '[0-9][0-9]*';

/** All decimals without exponent from `low` to `high`; undefined where there is none, or a bound is too long to write out. */
export function numberRange(low: Bound | undefined, high: Bound | undefined): string | undefined {
  const [from, to] = [low && sideOf(low), high && sideOf(high)];
  if (from === 'too long' || to === 'too long') return NOTHING;
  const zero: Side = { whole: '0', fraction: '', exclusive: false };
  const parts: (string | undefined)[] = [];
  if (to === undefined || !to.negative) {
    parts.push(between(from === undefined || from.negative ? zero : from, to));
  }
  if (from === undefined || from.negative) {
    const below = between(to === undefined || !to.negative ? { ...zero, exclusive: true } : to, from);
    if (below !== undefined) parts.push(`[\\x2d]${below}`);
  }
  return oneOf(parts);
}

function sideOf({ value, exclusive }: Bound): (Side & { negative: boolean }) | 'too long' {
  const found = /^(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(value.text);
  const [, sign = '', whole = '0', fraction = '', exponent = '0'] = found ?? [];
  const shift = Number(exponent);
  if (Math.abs(shift) > MAX_DIGITS || whole.length + fraction.length > MAX_DIGITS) return 'too long';
  const digits = '0'.repeat(Math.max(0, -shift)) + whole + fraction + '0'.repeat(Math.max(0, shift));
  const point = Math.max(0, -shift) + whole.length + shift;
  const side = {
    whole: digits.slice(0, point).replace(/^0+(?=\d)/, ''),
    fraction: digits.slice(point).replace(/0+$/, ''),
    exclusive,
  };
  return { ...side, negative: sign === '-' && /[1-9]/.test(digits) };
}

function between(low: Side, high: Side | undefined): string | undefined {
  if (high !== undefined && low.whole === high.whole) return withFraction(low.whole, fractions(low, high));
  if (high !== undefined && compareWhole(low.whole, high.whole) > 0) return NOTHING;
  const after = (BigInt(low.whole) + 1n).toString();
  const before = high && (BigInt(high.whole) - 1n).toString();
  const middle = before === undefined || compareWhole(after, before) <= 0 ? wholes(after, before) : NOTHING;
  return oneOf([
    withFraction(low.whole, fractions(low, undefined)),
    middle && `${middle}([.]${SOME_DIGITS})?`,
    high && withFraction(high.whole, fractions(undefined, high)),
  ]);
}

function compareWhole(a: string, b: string): number {
  return Number(BigInt(a) - BigInt(b) > 0n) - Number(BigInt(a) - BigInt(b) < 0n);
}

/** Whole numbers from `low` to `high`, length by length. */
function wholes(low: string, high: string | undefined): string | undefined {
  if (high === undefined) {
    if (low === '0') return ANY_WHOLE;
    return oneOf([sameLength(low, '9'.repeat(low.length)), `[1-9]${'[0-9]'.repeat(low.length)}[0-9]*`]);
  }
  const parts: string[] = [];
  for (let length = low.length; length <= high.length; length++) {
    const from = length === low.length ? low : `1${'0'.repeat(length - 1)}`;
    parts.push(sameLength(from, length === high.length ? high : '9'.repeat(length)));
  }
  return oneOf(parts);
}

/** Numbers of as many digits as both bounds have. */
function sameLength(low: string, high: string): string {
  if (low === '') return '';
  const [a, b] = [low.charAt(0), high.charAt(0)];
  const [restLow, restHigh] = [low.slice(1), high.slice(1)];
  if (a === b) return `[${a}]${sameLength(restLow, restHigh)}`;
  const [zeros, nines] = ['0'.repeat(restLow.length), '9'.repeat(restLow.length)];
  const parts = [`[${a}]${sameLength(restLow, nines)}`];
  if (Number(b) - Number(a) > 1) parts.push(`[${Number(a) + 1}-${Number(b) - 1}]${'[0-9]'.repeat(restLow.length)}`);
  parts.push(`[${b}]${sameLength(zeros, restHigh)}`);
  return `(${parts.join('|')})`;
}

/** What may stand after the point: digits, and whether there may be none. */
interface Fractions {
  digits: string | undefined;
  mayBeNone: boolean;
}

function withFraction(whole: string, { digits, mayBeNone }: Fractions): string | undefined {
  const written = [...whole].map((digit) => `[${digit}]`).join('');
  if (digits === undefined) return mayBeNone ? written : NOTHING;
  return `${written}([.]${digits})${mayBeNone ? '?' : ''}`;
}

function fractions(low: Side | undefined, high: Side | undefined): Fractions {
  const mayBeNone =
    (low === undefined || (low.fraction === '' && !low.exclusive)) &&
    (high === undefined || high.fraction !== '' || !high.exclusive);
  return { digits: someDigits(low, high), mayBeNone };
}

/** At least one digit such that the number stays between the fractions; undefined where none does. */
function someDigits(low: Side | undefined, high: Side | undefined): string | undefined {
  const isFree = low === undefined || (low.fraction === '' && !low.exclusive);
  if (isFree && high === undefined) return SOME_DIGITS;
  if (isFree && high?.fraction === '') return high.exclusive ? NOTHING : '[0][0]*';
  if (low?.fraction === '' && high === undefined) return '[0]*[1-9][0-9]*';
  if (low?.fraction === '' && high?.fraction === '') return NOTHING;
  const groups = new Map<string, string[]>();
  for (const digit of '0123456789') {
    const [a, b] = [low?.fraction.charAt(0) || '0', high === undefined ? '9' : high.fraction.charAt(0) || '0'];
    if ((low !== undefined && digit < a) || (high !== undefined && digit > b)) continue;
    const nextLow = low === undefined || digit > a ? undefined : { ...low, fraction: low.fraction.slice(1) };
    const nextHigh = high === undefined || digit < b ? undefined : { ...high, fraction: high.fraction.slice(1) };
    const after = fractions(nextLow, nextHigh);
    const rest =
      after.digits === undefined ? (after.mayBeNone ? '' : NOTHING) : after.mayBeNone ? `(${after.digits})?` : after.digits;
    if (rest !== undefined) groups.set(rest, [...(groups.get(rest) ?? []), digit]);
  }
  return oneOf([...groups].map(([rest, digits]) => `[${digits.join('')}]${rest}`));
}

function oneOf(parts: (string | undefined)[]): string | undefined {
  const given = parts.filter((part) => part !== undefined);
  return given.length > 1 ? `(${given.join('|')})` : given[0];
}

/** What `minimum` and its kin of a schema say; of two at one end the tighter. */
export function boundsOf(schema: ReadonlyMap<string, unknown>): { low: Bound | undefined; high: Bound | undefined } {
  const bound = (inclusive: string, exclusive: string, isTighter: (a: number, b: number) => boolean): Bound | undefined => {
    const [open, closed] = [schema.get(exclusive), schema.get(inclusive)];
    if (!(closed instanceof JsonNumber)) return open instanceof JsonNumber ? { value: open, exclusive: true } : undefined;
    if (!(open instanceof JsonNumber) || isTighter(closed.valueOf(), open.valueOf()))
      return { value: closed, exclusive: false };
    return { value: open, exclusive: true };
  };
  return {
    low: bound('minimum', 'exclusiveMinimum', (a, b) => a > b),
    high: bound('maximum', 'exclusiveMaximum', (a, b) => a < b),
  };
}
