/** The statistics, against values that numpy prints for the same samples; the random numbers, against their own theory. */
import { expect, test } from 'vitest';
import { arrivalTimes } from '../../lib/bench/load.js';
import { Random } from '../../lib/bench/random.js';
import { confidence95, deviation, mean, percentile, sorted, summarize } from '../../lib/bench/statistics.js';

const samples = [12, 3, 7, 7, 41];

test('mean, deviation and percentiles are numpy ones', () => {
  expect(mean(samples)).toBe(14);
  expect(deviation(samples)).toBeCloseTo(Math.sqrt(190.4), 9); // numpy.std: of the population
  const ascending = sorted(samples);
  // numpy.percentile([12, 3, 7, 7, 41], p)
  const expected = [
    [0, 3],
    [10, 4.6],
    [25, 7],
    [50, 7],
    [75, 12],
    [90, 29.4],
    [99, 39.84],
    [100, 41],
  ] as const;
  for (const [percent, value] of expected) expect(percentile(ascending, percent)).toBeCloseTo(value, 9);
  expect(percentile([5], 99)).toBe(5);
});

test('no samples are 0, as in the result files of other benchmarks', () => {
  expect(summarize([], [99])).toEqual({ mean: 0, median: 0, std: 0, percentiles: [[99, 0]] });
});

test('the confidence interval of a mean is that of Student', () => {
  expect(confidence95([5])).toBeUndefined();
  // 1.96-like factor for n = 3 is 4.303: sd 1, so 4.303 / sqrt(3)
  expect(confidence95([1, 2, 3])).toBeCloseTo(2.4843, 3);
});

test('the same seed gives the same numbers, another seed others', () => {
  const draw = (seed: number) => {
    const random = new Random(seed);
    return Array.from({ length: 5 }, () => random.uniform());
  };
  expect(draw(1)).toEqual(draw(1));
  expect(draw(1)).not.toEqual(draw(2));
  expect(draw(0).every((value) => value >= 0 && value < 1)).toBe(true);
});

test.each([0.3, 1, 4])('gamma of shape %d has its mean and its variance', (shape) => {
  const random = new Random(7);
  const values = Array.from({ length: 40_000 }, () => random.gamma(shape, 2));
  expect(mean(values) / (shape * 2)).toBeCloseTo(1, 1);
  expect(deviation(values) ** 2 / (shape * 4)).toBeCloseTo(1, 0);
});

test('arrivals keep the rate exactly, and are as bursty as asked for', () => {
  const gaps = (burstiness: number) => {
    const times = arrivalTimes(4000, { requestRate: 8, burstiness, seed: 3 });
    expect(times.at(-1)).toBeCloseTo(500, 6);
    return times.map((time, i) => time - (times[i - 1] ?? 0));
  };
  // The coefficient of variation of gamma gaps is 1 / sqrt(shape).
  const variation = (burstiness: number) => deviation(gaps(burstiness)) / mean(gaps(burstiness));
  expect(variation(1)).toBeCloseTo(1, 1);
  expect(variation(100)).toBeCloseTo(0.1, 1);
  expect(variation(0.25)).toBeGreaterThan(1.7);
  expect(arrivalTimes(4, { requestRate: 2, burstiness: Infinity, seed: 0 })).toEqual([0.5, 1, 1.5, 2]);
  expect(arrivalTimes(3, { requestRate: Infinity, burstiness: 1, seed: 0 })).toEqual([0, 0, 0]);
});
