/** What a measurement of the engine found: its table on the screen, and its JSON with what made it. */
import { spawnSync } from 'node:child_process';
import Table from 'cli-table3';
import { bench } from '../../../index.js';
import { bytes, json, measure, percent } from '../../format.js';
import { interruptible } from '../../interrupt.js';
import { dim, note, write } from '../../terminal.js';
import { commandLine, save } from './files.js';

/** What csrc/engine/bench returns; a row holds the fields that mean something for its phase. */
export interface EngineResult {
  machine: {
    name: string;
    device: string;
    threads: number;
    kernels: string;
    driver?: string;
    readGbps?: number;
    copyGbps?: number;
    matrixGflops?: number;
    matrixFp8Gflops?: number;
    /** Of several ranks: what one reads of another's memory, and a meeting of all that carries nothing. */
    linkGbps?: number;
    meetingMicroseconds?: number;
  };
  shape: string;
  rows: EngineRow[];
}

interface EngineRow {
  phase: 'decode' | 'prefill' | 'kernels' | 'load';
  part: string;
  ranks?: number;
  /** Of several ranks: `whole` ones on each, or each `in parts` on all. */
  experts?: string;
  batch?: number;
  prompt?: number;
  rows?: number;
  rowsPerExpert?: number;
  context?: number;
  tokensPerSecond?: number;
  milliseconds?: number;
  bytes?: number;
  gbps?: number;
  gflops?: number;
  boundMilliseconds?: number;
  boundBy?: string;
  fraction?: number;
  distinctExperts?: number;
  /** Time of a deterministic step over that of a default one. */
  timesDefault?: number;
  /** The kernels that ran, where the device can tell, one after the other: together they take longer than the row. */
  kernels?: { name: string; launches: number; milliseconds: number }[];
  /** One of them is the naive one: right, not fast. */
  slowPath?: boolean;
  /** Which kernel the backend chose for each op, and why not the one that is meant for such an op. */
  choices?: { op: string; rows: number; kernel: string; fallback?: string }[];
}

export interface OutputFlags {
  json?: boolean | undefined;
  output?: string | undefined;
}

/** Measures as `options` say (csrc/engine/bench/options.h), shows the rows and saves them where that was asked. */
export async function measureEngine(
  options: (signal: AbortSignal) => Promise<Record<string, unknown>>,
  { json: asJson, output }: OutputFlags,
): Promise<void> {
  const result = (await interruptible(async (signal) =>
    bench(await options(signal), { signal, onLine: (line) => note(dim(line)) }),
  )) as EngineResult;
  const record = { date: new Date().toISOString(), commit: currentCommit(), command: commandLine(), ...result };
  if (output !== undefined) await save(output, `${json(record, 2)}\n`);
  await write(asJson ? `${json(record, 2)}\n` : `${report(result)}\n`);
}

// A figure without the code that made it cannot be checked; outside a checkout there is no commit to name.
function currentCommit(): string | undefined {
  const { status, stdout } = spawnSync('git', ['-C', import.meta.dirname, 'describe', '--always', '--dirty', '--abbrev=12'], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  return status === 0 ? stdout.trim() : undefined;
}

export function report({ machine, shape, rows }: EngineResult): string {
  const named = rows.some(({ kernels }) => kernels !== undefined);
  const table = new Table({
    head: [
      'phase',
      'part',
      'of',
      'ms',
      'tokens/s',
      'bytes',
      'GB/s',
      'GFLOP/s',
      'bound ms',
      'bound by',
      'fraction',
      ...(named ? ['kernels'] : []),
    ],
    colAligns: ['left', 'left', 'left', 'right', 'right', 'right', 'right', 'right', 'right', 'left', 'right', 'left'],
    style: { head: [], border: [] },
  });
  const cell = (value: number | undefined, show: (value: number) => string) => (value === undefined ? '' : show(value));
  for (const row of rows) {
    table.push([
      row.phase,
      row.part,
      size(row),
      cell(row.milliseconds, measure),
      cell(row.tokensPerSecond, measure),
      cell(row.bytes, bytes),
      cell(row.gbps, measure),
      cell(row.gflops, measure),
      cell(row.boundMilliseconds, measure),
      row.boundBy ?? '',
      cell(row.fraction, percent),
      ...(named ? [kernelsOf(row)] : []),
    ]);
  }
  const head = `${shape} on ${machine.name}, ${machine.kernels}; bounds of this run: ${ceilings(machine)}`;
  return [head, table.toString(), ...fallbacks(rows)].join('\n');
}

/** A line for each op that a kernel took which is not the one meant for it, once for all numbers of rows where that was so. */
function fallbacks(rows: EngineRow[]): string[] {
  const rowsOf = new Map<string, Set<number>>();
  for (const { choices = [] } of rows) {
    for (const { op, rows: n, kernel, fallback } of choices) {
      if (fallback === undefined) continue;
      const line = `fallback: ${op} by ${kernel}, ${fallback}`;
      rowsOf.set(line, (rowsOf.get(line) ?? new Set()).add(n));
    }
  }
  return [...rowsOf].map(([line, counts]) => `${line} (${[...counts].sort((a, b) => a - b).join(', ')} rows)`);
}

function ceilings({
  readGbps,
  copyGbps,
  matrixGflops,
  matrixFp8Gflops,
  linkGbps,
  meetingMicroseconds,
}: EngineResult['machine']): string {
  const known = [
    readGbps === undefined ? '' : `read ${measure(readGbps)} GB/s`,
    copyGbps === undefined ? '' : `copy ${measure(copyGbps)} GB/s`,
    matrixGflops === undefined ? '' : `matrix ${measure(matrixGflops)} GFLOP/s`,
    matrixFp8Gflops === undefined ? '' : `in FP8 ${measure(matrixFp8Gflops)} GFLOP/s`,
    linkGbps === undefined ? '' : `link ${measure(linkGbps)} GB/s`,
    meetingMicroseconds === undefined ? '' : `meeting ${measure(meetingMicroseconds)} us`,
  ].filter((text) => text !== '');
  return known.join(', ') || 'not measured on this device';
}

function size({
  ranks,
  experts,
  batch,
  prompt,
  rows,
  rowsPerExpert,
  context,
  distinctExperts,
  timesDefault,
}: EngineRow): string {
  return [
    ranks === undefined ? '' : `${ranks} ranks, experts ${experts}`,
    batch === undefined ? '' : `batch ${batch}`,
    prompt === undefined ? '' : `prompt ${prompt}`,
    rows === undefined ? '' : `${rows} rows`,
    rowsPerExpert === undefined ? '' : `${rowsPerExpert} an expert`,
    context === undefined ? '' : `context ${context}`,
    distinctExperts === undefined ? '' : `${measure(distinctExperts)} experts a layer`,
    timesDefault === undefined ? '' : `${timesDefault.toFixed(2)} x the default`,
  ]
    .filter((text) => text !== '')
    .join(', ');
}

function kernelsOf({ kernels = [], slowPath, choices = [] }: EngineRow): string {
  const most = 4;
  const chosen = [...new Set(choices.map(({ kernel }) => kernel))];
  const lines = kernels.map(({ name, milliseconds }) => `${measure(milliseconds * 1000)} us ${name}`);
  const few = lines.length > most ? [...lines.slice(0, most - 1), `and ${lines.length - most + 1} more`] : lines;
  const name = chosen.length === 1 || chosen.length === 2 ? [`${chosen.join(', ')}:`] : []; // a whole step has too many
  return `${slowPath ? 'SLOW PATH: ' : ''}${[...name, ...few].join('\n')}`;
}
