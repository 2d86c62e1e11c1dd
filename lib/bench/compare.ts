/** Result files of `sigmoe bench serve`, `vllm bench serve` and SGLang's bench_serving side by side. */
import { InvalidArgumentError } from '../index.js';
import { confidence95, mean } from './statistics.js';

/** Keys of vLLM's files and what the same figure is called in SGLang's. */
const FIGURES: readonly { name: string; keys: readonly string[] }[] = [
  { name: 'requests/s', keys: ['request_throughput'] },
  { name: 'output tok/s', keys: ['output_throughput'] },
  { name: 'TTFT mean, ms', keys: ['mean_ttft_ms'] },
  { name: 'TTFT p99, ms', keys: ['p99_ttft_ms'] },
  { name: 'TPOT mean, ms', keys: ['mean_tpot_ms'] },
  { name: 'TPOT p99, ms', keys: ['p99_tpot_ms'] },
  { name: 'ITL p99, ms', keys: ['p99_itl_ms'] },
  { name: 'E2E mean, ms', keys: ['mean_e2el_ms', 'mean_e2e_latency_ms'] },
  { name: 'accepted length', keys: ['spec_decode_acceptance_length', 'accept_length'] },
];

export interface Compared {
  head: string[];
  rows: string[][];
}

/**
 * One row per file and load: a file holds one result, or several of them as JSON lines. Runs of the same load in one file
 * are repetitions, shown as mean ± half width of the 95% confidence interval.
 */
export function compareResults(files: readonly { name: string; text: string }[]): Compared {
  const rows = files.flatMap(({ name, text }) => {
    const loads = new Map<string, Record<string, unknown>[]>();
    for (const result of readResults(name, text)) {
      const load = `${result.request_rate ?? 'inf'} req/s, ${result.max_concurrency ?? 'no'} limit`;
      loads.set(load, [...(loads.get(load) ?? []), result]);
    }
    return [...loads].map(([load, runs]) => [
      name,
      load,
      String(runs.length),
      ...FIGURES.map(({ keys }) => figure(runs, keys)),
    ]);
  });
  return { head: ['file', 'load', 'runs', ...FIGURES.map((each) => each.name)], rows };
}

function figure(runs: readonly Record<string, unknown>[], keys: readonly string[]): string {
  const values = runs.flatMap((run) => keys.map((key) => run[key]).filter((value) => typeof value === 'number'));
  if (values.length === 0) return '';
  const spread = confidence95(values);
  const show = (value: number) => value.toFixed(2);
  return spread === undefined ? show(mean(values)) : `${show(mean(values))} ± ${show(spread)}`;
}

// One object, indented or not, or an object a line.
function readResults(name: string, text: string): Record<string, unknown>[] {
  const whole = parse(text);
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  const results = whole === undefined ? lines.map(parse) : [whole].flat();
  return results.map((result, index) => {
    const isResult = typeof result === 'object' && result !== null && 'request_throughput' in result;
    if (isResult) return result as Record<string, unknown>;
    const place = results.length > 1 ? `${name}: result ${index + 1}` : name;
    throw new InvalidArgumentError(
      'files',
      `${place}: expected the JSON of a serving benchmark with "request_throughput"`,
      'sigmoe bench serve --save-result, vllm bench serve --save-result and SGLang bench_serving --output-file write such files',
    );
  });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
