/** sigmoe bench speculation --shape: random weights, and published acceptance replayed. csrc/engine/bench/speculation.cpp says what is measured. */
import Table from 'cli-table3';
import { bench } from '../../../index.js';
import { CliError, EXIT_USAGE } from '../../failure.js';
import type { EngineFlags } from '../../flags.js';
import { json, measure, percent } from '../../format.js';
import { interruptible } from '../../interrupt.js';
import { dim, note, write } from '../../terminal.js';
import { atLeast } from './dataset.js';
import { commandLine, save } from './files.js';

export interface ReplayFlags extends EngineFlags {
  shape?: string;
  acceptance?: string;
  format?: string;
  context?: number;
  steps?: number;
  batch: number[];
  outputJson?: string;
  json?: boolean;
}

interface ReplayResult {
  machine: { name: string; device: string; kernels: string };
  shape: string;
  format: string;
  context: number;
  depth: number;
  acceptance: { asked: string; meanTokens: number };
  rows: ReplayRow[];
}

interface ReplayRow {
  batch: number;
  plainStepMs: number;
  verifyStepMs: number;
  verifyRatio: number;
  draftMs: number;
  draftShare: number;
  tokensPerStep: number;
  plainTokensPerSecond: number;
  tokensPerSecond: number;
  gain: number;
}

export async function replaySpeculation(flags: ReplayFlags): Promise<void> {
  for (const [flag, value] of Object.entries({ draft: flags.draft, speculative: flags.speculative })) {
    if (value !== undefined) throw new CliError(`--shape brings its own draft; leave out --${flag}`, '', EXIT_USAGE);
  }
  atLeast('--context', flags.context ?? 2, 2);
  atLeast('--steps', flags.steps ?? 3, 3);
  const options = {
    shape: flags.shape,
    acceptance: flags.acceptance ?? '3.1',
    format: flags.format,
    device: flags.device,
    compute: flags.compute,
    kernels: flags.kernels,
    threads: flags.threads,
    context: flags.context,
    steps: flags.steps,
    depth: flags.speculativeDepth,
    batches: flags.batch,
  };
  const measured = interruptible((signal) => bench(options, { signal, onLine: (line) => note(dim(line)) }));
  const result = (await measured) as ReplayResult;
  const record = { date: new Date().toISOString(), command: commandLine(), ...result };
  if (flags.outputJson !== undefined) await save(flags.outputJson, `${json(record, 2)}\n`);
  await write(flags.json ? `${json(record, 2)}\n` : `${report(result)}\n`);
}

function report({ machine, shape, format, context, depth, acceptance, rows }: ReplayResult): string {
  const head = [
    'batch',
    'plain ms',
    'verify ms',
    'verify / plain',
    'draft ms',
    'draft share',
    'tokens/step',
    'plain tok/s',
    'tok/s',
    'gain',
  ];
  const table = new Table({ head, colAligns: head.map(() => 'right' as const), style: { head: [], border: [] } });
  for (const row of rows) {
    table.push([
      row.batch,
      measure(row.plainStepMs),
      measure(row.verifyStepMs),
      `${row.verifyRatio.toFixed(2)}x`,
      measure(row.draftMs),
      percent(row.draftShare),
      row.tokensPerStep.toFixed(2),
      measure(row.plainTokensPerSecond),
      measure(row.tokensPerSecond),
      `${row.gain.toFixed(2)}x`,
    ]);
  }
  return (
    `${shape} (${format}) on ${machine.name}, ${machine.kernels}, ${context} tokens of context; ${depth} tokens drafted, ` +
    `${acceptance.meanTokens.toFixed(2)} a step by the replayed acceptance\n${table.toString()}`
  );
}
