/** A measurement as result files have it: the keys of `vllm bench serve`, or those of SGLang's bench_serving. */

import type { Speculation } from './counters.js';
import type { Goodput, Measurement, Metric } from './measurement.js';
import { mean, percentile, sorted, sum, summarize } from './statistics.js';

/** What was asked for, as far as result files repeat it. */
export interface ServeSetup {
  date: Date;
  backend: string;
  label: string | undefined;
  modelId: string;
  tokenizerId: string | undefined;
  numPrompts: number;
  requestRate: number;
  burstiness: number;
  maxConcurrency: number | undefined;
  metadata: Record<string, string>;
  datasetName: string;
  randomInputLen: number;
  randomOutputLen: number;
  randomRangeRatio: number;
  goodput: Goodput | undefined;
  metrics: readonly Metric[];
  percents: readonly number[];
  detailed: boolean;
}

export type ResultFields = Record<string, unknown>;

export function vllmResult(setup: ServeSetup, measured: Measurement, speculation: Speculation | undefined): ResultFields {
  const { duration } = measured;
  const result: ResultFields = {
    date: stamp(setup.date),
    endpoint_type: setup.backend,
    backend: setup.backend,
    label: setup.label ?? null,
    model_id: setup.modelId,
    tokenizer_id: setup.tokenizerId ?? null,
    num_prompts: setup.numPrompts,
    ...setup.metadata,
    request_rate: rate(setup.requestRate),
    burstiness: setup.burstiness,
    max_concurrency: setup.maxConcurrency ?? null,
    duration,
    completed: measured.completed,
    failed: measured.failed,
    total_input_tokens: measured.totalInput,
    total_output_tokens: measured.totalOutput,
    request_throughput: measured.completed / duration,
    request_goodput: measured.good === undefined ? null : measured.good / duration,
    output_throughput: measured.totalOutput / duration,
    total_token_throughput: (measured.totalInput + measured.totalOutput) / duration,
    max_output_tokens_per_s: measured.peakOutputPerSecond,
    max_concurrent_requests: measured.peakConcurrency,
    rtfx: 0, // seconds of audio a second: readers expect the key, text has none
  };
  for (const metric of setup.metrics) {
    const summary = summarize(measured.samples[metric], setup.percents);
    result[`mean_${metric}_ms`] = summary.mean;
    result[`median_${metric}_ms`] = summary.median;
    result[`std_${metric}_ms`] = summary.std;
    for (const [percent, value] of summary.percentiles) result[`p${percent}_${metric}_ms`] = value;
  }
  if (speculation !== undefined) Object.assign(result, speculationFields(speculation));
  if (setup.detailed) {
    const { requests } = measured;
    result.input_lens = requests.map((request) => request.inputLen);
    result.output_lens = requests.map((request) => request.outputLen);
    result.start_times = requests.map((request) => request.startTime);
    result.ttfts = requests.map((request) => request.ttft);
    result.itls = requests.map((request) => request.itls);
    result.generated_texts = requests.map((request) => request.text);
    result.errors = requests.map((request) => request.error);
  }
  return result;
}

function speculationFields({ drafts, draftTokens, acceptedTokens, acceptedPerPosition }: Speculation): ResultFields {
  return {
    spec_decode_acceptance_rate: draftTokens > 0 ? (acceptedTokens / draftTokens) * 100 : 0,
    spec_decode_acceptance_length: drafts > 0 ? 1 + acceptedTokens / drafts : 0,
    spec_decode_num_drafts: drafts,
    spec_decode_draft_tokens: draftTokens,
    spec_decode_accepted_tokens: acceptedTokens,
    spec_decode_per_position_acceptance_rates: acceptedPerPosition.map((accepted) => (drafts > 0 ? accepted / drafts : 0)),
  };
}

/** `retokenized`: output tokens as the client's tokenizer counts them; null without one. */
export function sglangResult(
  setup: ServeSetup,
  measured: Measurement,
  speculation: Speculation | undefined,
  retokenized: number | null,
): ResultFields {
  const { duration, samples, requests } = measured;
  const result: ResultFields = {
    backend: setup.backend,
    dataset_name: setup.datasetName,
    request_rate: rate(setup.requestRate),
    max_concurrency: setup.maxConcurrency ?? null,
    sharegpt_output_len: null,
    random_input_len: setup.randomInputLen,
    random_output_len: setup.randomOutputLen,
    random_range_ratio: setup.randomRangeRatio,
    duration,
    completed: measured.completed,
    total_input_tokens: measured.totalInput,
    total_output_tokens: measured.totalOutput,
    total_output_tokens_retokenized: retokenized,
    request_throughput: measured.completed / duration,
    input_throughput: measured.totalInput / duration,
    output_throughput: measured.totalOutput / duration,
  };
  const families = [
    ['e2e_latency', samples.e2el, [99]],
    ['ttft', samples.ttft, [99]],
    ['tpot', samples.tpot, [99]],
    ['itl', samples.itl, [95, 99]],
  ] as const;
  for (const [name, values, percents] of families) {
    const summary = summarize(values, percents);
    result[`mean_${name}_ms`] = summary.mean;
    result[`median_${name}_ms`] = summary.median;
    result[`std_${name}_ms`] = summary.std;
    for (const [percent, value] of summary.percentiles) result[`p${percent}_${name}_ms`] = value;
  }
  result.concurrency = sum(samples.e2el) / 1000 / duration;
  result.accept_length =
    speculation !== undefined && speculation.drafts > 0 ? 1 + speculation.acceptedTokens / speculation.drafts : null;
  if (setup.detailed) {
    result.input_lens = requests.map((request) => request.inputLen);
    result.output_lens = requests.map((request) => request.outputLen);
    result.ttfts = requests.map((request) => request.ttft);
    result.itls = requests.map((request) => request.itls);
    result.generated_texts = requests.map((request) => request.text);
    result.errors = requests.map((request) => request.error);
  }
  return result;
}

/** Of `throughput`: every prompt and output token of the run. */
export function throughputResult(seconds: number, requests: number, tokens: number): ResultFields {
  return {
    elapsed_time: seconds,
    num_requests: requests,
    total_num_tokens: tokens,
    requests_per_second: requests / seconds,
    tokens_per_second: tokens / seconds,
  };
}

export const LATENCY_PERCENTS = [10, 25, 50, 75, 90, 99];

/** Of `latency`: seconds of each whole batch. */
export function latencyResult(latencies: readonly number[]): ResultFields {
  const ascending = sorted(latencies);
  return {
    avg_latency: mean(latencies),
    std_latency: summarize(latencies, []).std,
    latencies: [...latencies],
    percentiles: Object.fromEntries(LATENCY_PERCENTS.map((percent) => [percent, percentile(ascending, percent)])),
  };
}

function rate(requestRate: number): number | 'inf' {
  return requestRate === Infinity ? 'inf' : requestRate;
}

/** 20261122-133000, local time. */
export function stamp(date: Date): string {
  const two = (value: number) => String(value).padStart(2, '0');
  const day = `${date.getFullYear()}${two(date.getMonth() + 1)}${two(date.getDate())}`;
  return `${day}-${two(date.getHours())}${two(date.getMinutes())}${two(date.getSeconds())}`;
}
