import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { integerRange, numberRange } from '../../lib/grammar/number_range.js';
import { JsonNumber } from '../../lib/json.js';

const bound = (text: string | undefined, exclusive = false) =>
  text === undefined ? undefined : { value: new JsonNumber(text), exclusive };
const pattern = (range: string) => new RegExp(`^(?:${range})$`);

/** A decimal as a whole number of the smallest unit, so that comparing is exact. */
function exact(text: string): bigint {
  const [, sign, whole = '', fraction = ''] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(text) ?? [];
  const value = BigInt(whole + fraction.padEnd(30, '0'));
  return sign === '-' ? -value : value;
}

describe('numberRange', () => {
  test.each([
    ['0', '1', ['0', '0.5', '0.99', '1', '1.0', '1.000'], ['1.5', '1.01', '-0.1', '2', '01', '.5', '1.']],
    ['35.5', '42', ['35.5', '35.51', '36', '41.99', '42.0', '40.1'], ['35.4', '35.49', '42.01', '35', '5', '100']],
    ['-2.25', '-1.5', ['-2.25', '-2', '-1.5', '-1.50', '-2.249'], ['-2.26', '-1.49', '2', '0', '-1']],
    ['-1', '100', ['-1', '-0.5', '0', '0.0', '99.9', '100'], ['-1.1', '100.1', '101', '1000']],
    [undefined, '9.99', ['-123456', '-0.5', '0', '9.99', '9.9'], ['10', '9.991', '99']],
    ['1e3', undefined, ['1000', '1000.5', '99999'], ['999.99', '0', '-1000']],
    ['1.5e-2', '2E-2', ['0.015', '0.02', '0.0199'], ['0.01', '0.021', '0.2']],
  ])('%s to %s', (low, high, inside, outside) => {
    const matches = pattern(numberRange(bound(low), bound(high)) ?? '(?!)');
    for (const text of inside) expect(text).toMatch(matches);
    for (const text of outside) expect(text).not.toMatch(matches);
  });

  test('exclusive bounds', () => {
    const matches = pattern(numberRange(bound('0', true), bound('1', true)) ?? '');
    for (const text of ['0.1', '0.01', '0.999']) expect(text).toMatch(matches);
    for (const text of ['0', '0.0', '1', '1.0', '0.00', '-0.1']) expect(text).not.toMatch(matches);
    expect(numberRange(bound('1', true), bound('1'))).toBeUndefined();
    expect(numberRange(bound('2'), bound('1'))).toBeUndefined();
    expect(numberRange(bound('1e100'), undefined)).toBeUndefined();
  });

  test('lets through exactly the decimals between the bounds', () => {
    const digits = (max: number) =>
      fc.array(fc.constantFrom(...'0123456789'), { minLength: 1, maxLength: max }).map((all) => all.join(''));
    const decimal = fc
      .tuple(fc.boolean(), digits(3), fc.option(digits(3)))
      .map(
        ([negative, whole, fraction]) =>
          `${negative ? '-' : ''}${whole.replace(/^0+(?=\d)/, '')}${fraction === null ? '' : `.${fraction}`}`,
      );
    const optional = fc.option(decimal, { nil: undefined });
    fc.assert(
      fc.property(
        optional,
        optional,
        fc.boolean(),
        fc.boolean(),
        fc.array(decimal, { minLength: 20 }),
        (a, b, openLow, openHigh, others) => {
          const [low, high] = a !== undefined && b !== undefined && exact(a) > exact(b) ? [b, a] : [a, b];
          const matches = pattern(numberRange(bound(low, openLow), bound(high, openHigh)) ?? '(?!)');
          for (const text of [...others, a ?? '0', b ?? '1']) {
            const value = exact(text);
            // Zero is written without a sign.
            if (text.startsWith('-') && value === 0n) continue;
            const fits =
              (low === undefined || (openLow ? value > exact(low) : value >= exact(low))) &&
              (high === undefined || (openHigh ? value < exact(high) : value <= exact(high)));
            expect(matches.test(text), `${text} in ${low} to ${high}`).toBe(fits);
          }
        },
      ),
      { numRuns: 1000 },
    );
  });
});

test('integerRange lets through exactly the integers between the bounds', () => {
  const whole = fc.oneof(fc.integer({ min: -30, max: 30 }), fc.integer({ min: -12000, max: 12000 }));
  const value = fc.tuple(whole, fc.constantFrom('', '', '.5', '.0')).map(([integer, fraction]) => `${integer}${fraction}`);
  const optional = fc.option(value, { nil: undefined });
  fc.assert(
    fc.property(
      optional,
      optional,
      fc.boolean(),
      fc.boolean(),
      fc.array(whole, { minLength: 20 }),
      (low, high, openLow, openHigh, others) => {
        const matches = pattern(integerRange(bound(low, openLow), bound(high, openHigh)) ?? '(?!)');
        const near = [low, high].flatMap((text) =>
          text === undefined ? [] : [-1, 0, 1].map((step) => Math.trunc(Number(text)) + step),
        );
        for (const integer of [...others, ...near, 0]) {
          const fits =
            (low === undefined || (openLow ? integer > Number(low) : integer >= Number(low))) &&
            (high === undefined || (openHigh ? integer < Number(high) : integer <= Number(high)));
          expect(matches.test(String(integer)), `${integer} in ${low} to ${high}`).toBe(fits);
        }
        for (const text of ['-', '', '00', '-0', '01', '1.0', '+1']) expect(text).not.toMatch(matches);
      },
    ),
    { numRuns: 1000 },
  );
});
