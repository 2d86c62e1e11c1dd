/** What a run prints: the blocks and headings that users of `vllm bench` know. */

import type { Speculation } from '../counters.js';
import { METRIC_NAMES, type Measurement } from '../measurement.js';
import { LATENCY_PERCENTS, type ServeSetup, vllmResult } from '../results.js';
import { mean, percentile, sorted } from '../statistics.js';

/** The console block of one run, as users of `vllm bench serve` know it. */
export function serveText(setup: ServeSetup, measured: Measurement, speculation: Speculation | undefined): string {
  const result = vllmResult({ ...setup, detailed: false }, measured, speculation);
  const number = (key: string) => Number(result[key]);
  const lines = [banner(' Serving Benchmark Result ', '=')];
  const row = (heading: string, value: number, digits: number) =>
    lines.push(`${`${heading}:`.padEnd(40)} ${value.toFixed(digits).padEnd(10)}`.trimEnd());
  row('Successful requests', measured.completed, 0);
  row('Failed requests', measured.failed, 0);
  if (setup.maxConcurrency !== undefined) row('Maximum request concurrency', setup.maxConcurrency, 0);
  if (setup.requestRate !== Infinity) row('Request rate configured (RPS)', setup.requestRate, 2);
  row('Benchmark duration (s)', measured.duration, 2);
  row('Total input tokens', measured.totalInput, 0);
  row('Total generated tokens', measured.totalOutput, 0);
  row('Request throughput (req/s)', number('request_throughput'), 2);
  if (measured.good !== undefined) row('Request goodput (req/s)', number('request_goodput'), 2);
  row('Output token throughput (tok/s)', number('output_throughput'), 2);
  row('Peak output token throughput (tok/s)', measured.peakOutputPerSecond, 2);
  row('Peak concurrent requests', measured.peakConcurrency, 2);
  row('Total token throughput (tok/s)', number('total_token_throughput'), 2);
  for (const metric of setup.metrics) {
    const { short, long } = METRIC_NAMES[metric];
    lines.push(banner(long, '-'));
    row(`Mean ${short} (ms)`, number(`mean_${metric}_ms`), 2);
    row(`Median ${short} (ms)`, number(`median_${metric}_ms`), 2);
    for (const percent of setup.percents) row(`P${percent} ${short} (ms)`, number(`p${percent}_${metric}_ms`), 2);
  }
  if (speculation !== undefined) {
    lines.push(banner('Speculative Decoding', '-'));
    row('Acceptance rate (%)', number('spec_decode_acceptance_rate'), 2);
    row('Acceptance length', number('spec_decode_acceptance_length'), 2);
    row('Drafts', speculation.drafts, 0);
    row('Draft tokens', speculation.draftTokens, 0);
    row('Accepted tokens', speculation.acceptedTokens, 0);
    if (speculation.acceptedPerPosition.length > 0) lines.push('Per-position acceptance (%):');
    speculation.acceptedPerPosition.forEach((accepted, position) => {
      row(`  Position ${position}`, (100 * accepted) / speculation.drafts, 2);
    });
  }
  lines.push('='.repeat(50));
  return `${lines.join('\n')}\n`;
}

function banner(text: string, fill: string): string {
  const room = Math.max(0, 50 - text.length);
  return fill.repeat(Math.floor(room / 2)) + text + fill.repeat(Math.ceil(room / 2));
}

export function throughputText(seconds: number, requests: number, promptTokens: number, outputTokens: number): string {
  const per = (count: number) => (count / seconds).toFixed(2);
  return (
    `Throughput: ${per(requests)} requests/s, ${per(promptTokens + outputTokens)} total tokens/s, ${per(outputTokens)} output tokens/s\n` +
    `Total num prompt tokens:  ${promptTokens}\nTotal num output tokens:  ${outputTokens}\n`
  );
}

export function latencyText(latencies: readonly number[]): string {
  const ascending = sorted(latencies);
  const lines = LATENCY_PERCENTS.map((percent) => `${percent}% percentile latency: ${percentile(ascending, percent)} seconds`);
  return [`Avg latency: ${mean(latencies)} seconds`, ...lines, ''].join('\n');
}
