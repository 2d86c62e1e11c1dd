/** Outcomes to figures to result files: values worked out by hand, keys as the other benchmarks write them. */
import { expect, test } from 'vitest';
import type { Outcome } from '../../lib/bench/client.js';
import { compareResults } from '../../lib/bench/compare.js';
import { prefixCacheBetween, readCounters, speculationBetween } from '../../lib/bench/counters.js';
import { measure } from '../../lib/bench/measurement.js';
import { serveText, throughputText } from '../../lib/bench/report/console.js';
import { latencyReport, serveReport } from '../../lib/bench/report/page.js';
import { cumulative, plotSvg, ticks } from '../../lib/bench/report/plots.js';
import { latencyResult, type ServeSetup, sglangResult, throughputResult, vllmResult } from '../../lib/bench/results.js';

const outcome = (fields: Partial<Outcome>): Outcome => ({
  error: undefined,
  dueAt: 1000,
  sentAt: 1000,
  chunkTimes: [],
  endedAt: 1000,
  promptTokens: 10,
  outputTokens: 0,
  text: '',
  ...fields,
});

// Three requests: one of 5 tokens in 3 chunks, one that waited in the client for the first, one refused.
const outcomes = [
  outcome({ chunkTimes: [1100, 1200, 1500], endedAt: 1500, outputTokens: 5, text: 'abc' }),
  outcome({ sentAt: 1500, chunkTimes: [2600], endedAt: 2700, outputTokens: 1, text: 'd' }),
  outcome({ sentAt: 1200, endedAt: 1300, error: 'status 429: busy', outputTokens: undefined }),
];
const measured = measure(outcomes, 2, { ttft: 200, e2el: 600 }, () => 0);

const setup: ServeSetup = {
  date: new Date(2026, 10, 22, 9, 5, 7),
  backend: 'openai',
  label: undefined,
  modelId: 'nano',
  tokenizerId: 'models/nano',
  numPrompts: 3,
  requestRate: Infinity,
  burstiness: 1,
  maxConcurrency: 2,
  metadata: { machine: 'test' },
  datasetName: 'random',
  randomInputLen: 10,
  randomOutputLen: 5,
  randomRangeRatio: 0,
  goodput: { ttft: 200, e2el: 600 },
  metrics: ['ttft', 'tpot', 'itl', 'e2el'],
  percents: [50, 99.9],
  detailed: true,
};

test('figures of the three requests', () => {
  expect(measured).toMatchObject({ completed: 2, failed: 1, totalInput: 20, totalOutput: 6, good: 1, peakConcurrency: 1 });
  expect(measured.samples).toEqual({
    ttft: [100, 1100],
    tpot: [100],
    itl: [100, 300],
    e2el: [500, 1200],
    client_queue_time: [0, 500],
    e2el_including_client_queue: [500, 1700],
  });
  expect(measured.outputPerSecond).toEqual([5, 1]);
  expect(measured.peakOutputPerSecond).toBe(5);
  expect(measured.requests[2]).toMatchObject({ outputLen: 0, ttft: 0, latency: 0, error: 'status 429: busy' });
});

test('the result has the keys of vllm bench serve, and the right values under them', () => {
  const result = vllmResult(setup, measured, undefined);
  const families = ['ttft', 'tpot', 'itl', 'e2el'].flatMap((metric) =>
    ['mean', 'median', 'std', 'p50', 'p99.9'].map((figure) => `${figure}_${metric}_ms`),
  );
  expect(Object.keys(result)).toEqual([
    ...['date', 'endpoint_type', 'backend', 'label', 'model_id', 'tokenizer_id', 'num_prompts', 'machine'],
    ...['request_rate', 'burstiness', 'max_concurrency', 'duration', 'completed', 'failed'],
    ...['total_input_tokens', 'total_output_tokens', 'request_throughput', 'request_goodput', 'output_throughput'],
    ...['total_token_throughput', 'max_output_tokens_per_s', 'max_concurrent_requests', 'rtfx'],
    ...families,
    ...['input_lens', 'output_lens', 'start_times', 'ttfts', 'itls', 'generated_texts', 'errors'],
  ]);
  expect(result).toMatchObject({
    date: '20261122-090507',
    request_rate: 'inf',
    request_throughput: 1,
    request_goodput: 0.5,
    output_throughput: 3,
    total_token_throughput: 13,
    mean_ttft_ms: 600,
    median_itl_ms: 200,
    std_ttft_ms: 500,
    'p99.9_e2el_ms': expect.closeTo(1199.3, 6),
    input_lens: [10, 10, 10],
    output_lens: [5, 1, 0],
    itls: [[0.1, 0.3], [], []],
    generated_texts: ['abc', 'd', ''],
  });
  const plain = vllmResult({ ...setup, detailed: false, requestRate: 4, goodput: undefined }, measured, undefined);
  expect(plain).not.toHaveProperty('generated_texts');
  expect(plain.request_rate).toBe(4);
});

test('the result has the keys of SGLang on request', () => {
  const family = (name: string, ...percents: string[]) =>
    ['mean', 'median', 'std', ...percents].map((each) => `${each}_${name}_ms`);
  const result = sglangResult({ ...setup, detailed: false }, measured, undefined, 7);
  expect(Object.keys(result)).toEqual([
    ...['backend', 'dataset_name', 'request_rate', 'max_concurrency', 'sharegpt_output_len', 'random_input_len'],
    ...['random_output_len', 'random_range_ratio', 'duration', 'completed', 'total_input_tokens', 'total_output_tokens'],
    ...['total_output_tokens_retokenized', 'request_throughput', 'input_throughput', 'output_throughput'],
    ...family('e2e_latency', 'p99'),
    ...family('ttft', 'p99'),
    ...family('tpot', 'p99'),
    ...family('itl', 'p95', 'p99'),
    ...['concurrency', 'accept_length'],
  ]);
  expect(result).toMatchObject({ input_throughput: 10, concurrency: 0.85, mean_e2e_latency_ms: 850 });
});

test('the console has the headings of vllm bench serve', () => {
  const text = serveText(setup, measured, undefined);
  const lines = text.split('\n');
  expect(lines[0]).toBe('============ Serving Benchmark Result ============');
  expect(lines[1]).toBe('Successful requests:                     2');
  for (const heading of [
    'Failed requests:',
    'Maximum request concurrency:',
    'Benchmark duration (s):',
    'Total input tokens:',
    'Total generated tokens:',
    'Request throughput (req/s):',
    'Request goodput (req/s):',
    'Output token throughput (tok/s):',
    'Peak output token throughput (tok/s):',
    'Peak concurrent requests:',
    'Total token throughput (tok/s):',
    '---------------Time to First Token----------------',
    'Mean TTFT (ms):',
    'P99.9 TPOT (ms):',
    '-----Time per Output Token (excl. 1st token)------',
    '---------------Inter-token Latency----------------',
  ]) {
    expect(text).toContain(`\n${heading}`);
  }
  expect(lines.at(-2)).toBe('='.repeat(50));
});

test('throughput and latency have the keys of theirs', () => {
  expect(throughputResult(2, 10, 600)).toEqual({
    elapsed_time: 2,
    num_requests: 10,
    total_num_tokens: 600,
    requests_per_second: 5,
    tokens_per_second: 300,
  });
  expect(throughputText(2, 10, 400, 200)).toMatch(
    /^Throughput: 5\.00 requests\/s, 300\.00 total tokens\/s, 100\.00 output tokens\/s\n/,
  );
  const latency = latencyResult([1, 2, 3]);
  expect(Object.keys(latency)).toEqual(['avg_latency', 'std_latency', 'latencies', 'percentiles']);
  expect(latency.percentiles).toEqual({ 10: 1.2, 25: 1.5, 50: 2, 75: 2.5, 90: 2.8, 99: 2.98 });
});

test('speculation and prefix cache are differences of counters, whoever serves them', () => {
  const page = (drafts: number, accepted: number) => `# HELP x
vllm:spec_decode_num_drafts_total{model_name="m"} ${drafts}
vllm:spec_decode_num_draft_tokens_total{model_name="m"} ${drafts * 4}.0
vllm:spec_decode_num_accepted_tokens_total{model_name="m"} ${accepted}
vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="0"} ${accepted}
`;
  const between = speculationBetween(readCounters(page(10, 5)), readCounters(page(30, 35)));
  expect(between).toEqual({ drafts: 20, draftTokens: 80, acceptedTokens: 30, acceptedPerPosition: [30] });
  expect(vllmResult(setup, measured, between)).toMatchObject({
    spec_decode_acceptance_rate: 37.5,
    spec_decode_acceptance_length: 2.5,
    spec_decode_num_drafts: 20,
    spec_decode_per_position_acceptance_rates: [1.5],
  });
  expect(serveText(setup, measured, between)).toContain('Acceptance length:                       2.50');
  const without = readCounters('sigmoe:num_requests_running 1\n');
  expect([speculationBetween(new Map(), without), prefixCacheBetween(new Map(), without)]).toEqual([undefined, undefined]);
  const cache = (queries: number, hits: number) =>
    readCounters(`sigmoe:prefix_cache_queries_total{m="n"} ${queries}\nsigmoe:prefix_cache_hits_total{m="n"} ${hits}\n`);
  expect(prefixCacheBetween(cache(10, 1), cache(30, 6))).toEqual({ queries: 20, hits: 5 });
});

test('the report is one file without script or outside address, with a plot over concurrency', () => {
  const html = serveReport(
    '<b>Report</b>',
    [['command', 'a & b']],
    [
      { maxConcurrency: 1, measured, prefixCache: { queries: 90, hits: 30 } },
      { maxConcurrency: 8, measured, prefixCache: undefined },
    ],
  );
  expect(html).toContain('<h1>&#60;b&#62;Report&#60;/b&#62;</h1>');
  expect(html).toContain('a &#38; b');
  expect(html).toContain('<td>30 of 90</td>');
  expect(html).not.toMatch(/<script|<link|<img|src=|href=|url\(|https?:/);
  expect(html.match(/<svg /g)).toHaveLength(8);
  expect(html).toContain('Throughput against concurrency');
  expect(html).not.toContain('NaN');
  const one = serveReport('one', [], [{ maxConcurrency: undefined, measured, prefixCache: undefined }]);
  expect(one.match(/<svg /g)).toHaveLength(5);
  const failed = serveReport(
    'none',
    [],
    [{ maxConcurrency: 1, measured: measure(outcomes.slice(2), 1, undefined, () => 0), prefixCache: undefined }],
  );
  expect(failed).not.toMatch(/NaN|Infinity|undefined/);
  expect(latencyReport('latency', [], [1, 2, 3], [99])).toContain('2.9800');
});

test('plots: round ticks, cumulative shares, points inside the frame', () => {
  expect(ticks(0)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
  expect(ticks(97)).toEqual([0, 20, 40, 60, 80, 100]);
  expect(ticks(0.0031).at(-1)).toBeGreaterThanOrEqual(0.0031);
  expect(cumulative([1, 2, 3, 4])).toEqual([
    [1, 25],
    [2, 50],
    [3, 75],
    [4, 100],
  ]);
  expect(cumulative(Array.from({ length: 1000 }, (_, i) => i))).toHaveLength(200);
  const svg = plotSvg({
    title: 't',
    xLabel: 'x',
    yLabel: 'y',
    series: [
      {
        name: 's',
        points: [
          [0, 0],
          [97, 97],
        ],
      },
    ],
  });
  const [, points = ''] = /points="([^"]+)"/.exec(svg) ?? [];
  expect(points.split(' ').map((pair) => pair.split(',').map(Number))).toEqual([
    [64, 254],
    [529.6, 21.2],
  ]);
});

test('results of three benchmarks stand in one table, repetitions as a mean with its confidence', () => {
  const ours = [{ ...vllmResult(setup, measured, undefined) }];
  const vllm = vllmResult({ ...setup, detailed: false }, measured, undefined);
  const lines = [1, 2, 3].map((n) => JSON.stringify({ ...sglangResult(setup, measured, undefined, 7), request_throughput: n }));
  const { head, rows } = compareResults([
    { name: 'ours.json', text: JSON.stringify(ours[0], null, 2) },
    { name: 'vllm.json', text: JSON.stringify(vllm) },
    { name: 'sglang.jsonl', text: `${lines.join('\n')}\n` },
  ]);
  const column = (name: string) => rows.map((row) => row[head.indexOf(name)]);
  expect(column('file')).toEqual(['ours.json', 'vllm.json', 'sglang.jsonl']);
  expect(column('runs')).toEqual(['1', '1', '3']);
  expect(column('requests/s')).toEqual(['1.00', '1.00', '2.00 ± 2.48']);
  expect(column('E2E mean, ms')).toEqual(['850.00', '850.00', '850.00 ± 0.00']);
  expect(() => compareResults([{ name: 'x.json', text: '{"a": 1}' }])).toThrow(
    /x\.json: expected the JSON of a serving benchmark/,
  );
  expect(() => compareResults([{ name: 'y.json', text: `${lines[0]}\nnot json` }])).toThrow(/y\.json: result 2/);
});
