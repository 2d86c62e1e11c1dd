/** The HTML report: one file that opens without a network. What was run, what came out, how the figures are defined. */
import type { PrefixCache } from '../counters.js';
import { METRIC_NAMES, type Measurement } from '../measurement.js';
import { sorted, summarize } from '../statistics.js';
import { cumulative, escapeHtml, type Plot, plotSvg } from './plots.js';

/** One run of `serve`, at one concurrency. */
export interface ReportRun {
  maxConcurrency: number | undefined;
  measured: Measurement;
  prefixCache: PrefixCache | undefined;
}

export type Facts = readonly (readonly [string, string])[];

interface Table {
  title: string;
  head: readonly string[];
  rows: readonly (readonly string[])[];
}

export function serveReport(title: string, facts: Facts, runs: readonly ReportRun[]): string {
  const name = (run: ReportRun) => (run.maxConcurrency === undefined ? 'no limit' : `concurrency ${run.maxConcurrency}`);
  const distribution = (metric: 'ttft' | 'tpot' | 'itl' | 'e2el'): Plot => ({
    title: METRIC_NAMES[metric].long,
    xLabel: `${METRIC_NAMES[metric].short}, ms`,
    yLabel: metric === 'itl' ? '% of gaps' : '% of requests',
    series: runs.map((run) => ({ name: name(run), points: cumulative(sorted(run.measured.samples[metric])) })),
  });
  const plots = [
    ...(runs.length > 1 ? overConcurrency(runs) : []),
    ...(['ttft', 'tpot', 'itl', 'e2el'] as const).map(distribution),
  ];
  plots.push({
    title: 'Output tokens in each second of the run',
    xLabel: 'second',
    yLabel: 'tokens',
    series: runs.map((run) => ({
      name: name(run),
      points: run.measured.outputPerSecond.map((tokens, second) => [second, tokens]),
    })),
  });
  return page(title, facts, [throughputTable(runs), latencyTable(runs)], plots, SERVE_DEFINITIONS);
}

export function latencyReport(title: string, facts: Facts, seconds: readonly number[], percents: readonly number[]): string {
  const summary = summarize(seconds, percents);
  const rows = summary.percentiles.map(([percent, value]) => [`p${percent}`, value.toFixed(4)]);
  const table = {
    title: 'Latency of a batch, s',
    head: ['', 'seconds'],
    rows: [['mean', summary.mean.toFixed(4)], ['standard deviation', summary.std.toFixed(4)], ...rows],
  };
  const plots: Plot[] = [
    {
      title: 'Latency of a batch',
      xLabel: 's',
      yLabel: '% of iterations',
      series: [{ name: '', points: cumulative(sorted(seconds)) }],
    },
    {
      title: 'Latency by iteration',
      xLabel: 'iteration',
      yLabel: 's',
      series: [{ name: '', points: seconds.map((value, i) => [i + 1, value]) }],
      dots: true,
    },
  ];
  return page(title, facts, [table], plots, [
    'A latency is the time from submitting a whole batch to the end of its last answer.',
  ]);
}

function overConcurrency(runs: readonly ReportRun[]): Plot[] {
  const over = (title: string, yLabel: string, values: Record<string, (measured: Measurement) => number>): Plot => ({
    title,
    xLabel: 'requests under way',
    yLabel,
    dots: true,
    series: Object.entries(values).map(([series, value]) => ({
      name: series,
      points: runs.map(
        ({ maxConcurrency, measured }) => [maxConcurrency ?? measured.peakConcurrency, value(measured)] as const,
      ),
    })),
  });
  const at = (metric: 'ttft' | 'tpot', percent: number) => (measured: Measurement) =>
    summarize(measured.samples[metric], [percent]).percentiles[0]?.[1] ?? 0;
  return [
    over('Throughput against concurrency', 'tokens/s', {
      'output tokens/s': (measured) => measured.totalOutput / measured.duration,
      'all tokens/s': (measured) => (measured.totalInput + measured.totalOutput) / measured.duration,
    }),
    over('TTFT against concurrency', 'ms', { median: at('ttft', 50), p99: at('ttft', 99) }),
    over('TPOT against concurrency', 'ms', { median: at('tpot', 50), p99: at('tpot', 99) }),
  ];
}

function throughputTable(runs: readonly ReportRun[]): Table {
  return {
    title: 'Throughput',
    head: [
      'concurrency',
      'completed',
      'failed',
      's',
      'requests/s',
      'output tok/s',
      'all tok/s',
      'peak output tok/s',
      'peak requests',
      'prompt tokens cached',
    ],
    rows: runs.map(({ maxConcurrency, measured, prefixCache }) => [
      maxConcurrency === undefined ? 'no limit' : String(maxConcurrency),
      String(measured.completed),
      String(measured.failed),
      measured.duration.toFixed(2),
      (measured.completed / measured.duration).toFixed(2),
      (measured.totalOutput / measured.duration).toFixed(1),
      ((measured.totalInput + measured.totalOutput) / measured.duration).toFixed(1),
      measured.peakOutputPerSecond.toFixed(0),
      String(measured.peakConcurrency),
      prefixCache === undefined ? 'unknown' : `${prefixCache.hits} of ${prefixCache.queries}`,
    ]),
  };
}

function latencyTable(runs: readonly ReportRun[]): Table {
  return {
    title: 'Latency, ms',
    head: ['concurrency', 'metric', 'mean', 'std', 'median', 'p90', 'p99'],
    rows: runs.flatMap(({ maxConcurrency, measured }) =>
      (['ttft', 'tpot', 'itl', 'e2el'] as const).map((metric) => {
        const { mean, std, median, percentiles } = summarize(measured.samples[metric], [90, 99]);
        const values = [mean, std, median, ...percentiles.map(([, value]) => value)];
        return [
          maxConcurrency === undefined ? 'no limit' : String(maxConcurrency),
          METRIC_NAMES[metric].short,
          ...values.map((value) => value.toFixed(2)),
        ];
      }),
    ),
  };
}

const SERVE_DEFINITIONS = [
  'TTFT: from sending a request to its first chunk with content.',
  'TPOT: (end-to-end latency − TTFT) / (output tokens − 1).',
  'ITL: the gaps between chunks with content. A chunk may hold several tokens (speculation, a slow reader): then TPOT is the fair figure.',
  'E2EL: from sending a request to its last chunk.',
  'Tokens are counted from the usage the server sends, not from chunks. Warm-up requests do not count. Percentiles are interpolated as numpy does.',
  'Prompt tokens cached: what the server found in its prefix cache during the run, by its own metrics.',
  'One run is one sample: compare means of at least three.',
];

const STYLE = `
:root { color-scheme: light dark; --text: #20262a; --soft: #5f6b70; --line: #dedfd9; --ground: #fbfbf9;
  --c0: #0f766e; --c1: #b45309; --c2: #4f46e5; --c3: #be185d; --c4: #4d7c0f; --c5: #64748b; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8e6; --soft: #9aa6a9; --line: #30383c; --ground: #14181a;
  --c0: #5bb8ac; --c1: #f0a35e; --c2: #9f9bff; --c3: #f48fb6; --c4: #a9cf6a; --c5: #a3b1c2; } }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.5rem; background: var(--ground); color: var(--text); font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } .facts { width: 100%; } .facts td, .facts th { text-align: left; vertical-align: top; } .facts td { width: 100%; white-space: normal; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1.5rem 2rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .92rem; } svg { width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; } .grid { stroke: var(--line); } polyline { fill: none; stroke-width: 2; }
.legend { margin: 0; font-size: .85rem; color: var(--soft); } .legend span { margin-right: 1.2em; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
${Array.from({ length: 6 }, (_, i) => `.line${i} { stroke: var(--c${i}); } .fill${i} { fill: var(--c${i}); background: var(--c${i}); }`).join('\n')}
`;

function page(
  title: string,
  facts: Facts,
  tables: readonly Table[],
  plots: readonly Plot[],
  definitions: readonly string[],
): string {
  const cells = (tag: string, row: readonly string[]) => row.map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`).join('');
  const rowsOf = (rows: readonly (readonly string[])[]) => rows.map((row) => `<tr>${cells('td', row)}</tr>`).join('\n');
  const sections = tables.map(
    ({ title: name, head, rows }) =>
      `<h2>${escapeHtml(name)}</h2>\n<div class="scroll"><table><thead><tr>${cells('th', head)}</tr></thead><tbody>\n${rowsOf(rows)}\n</tbody></table></div>`,
  );
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="content-security-policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${escapeHtml(title)}</title><style>${STYLE}</style></head><body>
<h1>${escapeHtml(title)}</h1>
<table class="facts"><tbody>
${facts.map(([name, value]) => `<tr><th scope="row">${escapeHtml(name)}</th><td>${escapeHtml(value)}</td></tr>`).join('\n')}
</tbody></table>
${sections.join('\n')}
<h2>Plots</h2>
<div class="plots">
${plots.map(plotSvg).join('\n')}
</div>
<h2>How the figures are defined</h2>
<ul>${definitions.map((line) => `<li>${escapeHtml(line)}</li>`).join('')}</ul>
</body></html>
`;
}
