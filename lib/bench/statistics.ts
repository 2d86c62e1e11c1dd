/** Means and percentiles of samples, defined as numpy defines them, so that figures compare with other benchmarks. */

/** 0 for no samples, as the result files of other benchmarks have it. */
export function mean(samples: readonly number[]): number {
  return samples.length === 0 ? 0 : sum(samples) / samples.length;
}

export function sum(samples: readonly number[]): number {
  return samples.reduce((total, sample) => total + sample, 0);
}

/** Of the population: divided by n. */
export function deviation(samples: readonly number[]): number {
  const centre = mean(samples);
  return Math.sqrt(mean(samples.map((sample) => (sample - centre) ** 2)));
}

/** Half width of the 95% confidence interval of the mean (Student's t); undefined for fewer than two samples. */
export function confidence95(samples: readonly number[]): number | undefined {
  const n = samples.length;
  if (n < 2) return undefined;
  const spread = deviation(samples) * Math.sqrt(n / (n - 1));
  return ((T_975[n - 2] ?? NORMAL_975) * spread) / Math.sqrt(n);
}

// Quantiles of Student's t at 0.975 for 1 to 30 degrees of freedom; beyond that the normal one is within 4%.
const T_975 = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11, 2.101,
  2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
];
const NORMAL_975 = 1.96;

export function sorted(samples: readonly number[]): number[] {
  return [...samples].sort((a, b) => a - b);
}

/** Of ascending samples, between neighbours by linear interpolation; `percent` from 0 to 100. */
export function percentile(ascending: readonly number[], percent: number): number {
  const place = ((ascending.length - 1) * percent) / 100;
  const low = ascending[Math.floor(place)] ?? 0;
  const high = ascending[Math.ceil(place)] ?? low;
  return low + (high - low) * (place - Math.floor(place));
}

export interface Summary {
  mean: number;
  median: number;
  std: number;
  /** In the order asked for: [percent, value]. */
  percentiles: [number, number][];
}

export function summarize(samples: readonly number[], percents: readonly number[]): Summary {
  const ascending = sorted(samples);
  return {
    mean: mean(samples),
    median: percentile(ascending, 50),
    std: deviation(samples),
    percentiles: percents.map((percent) => [percent, percentile(ascending, percent)]),
  };
}
