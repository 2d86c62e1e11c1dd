/**
 * sigmoe bench: how fast prefill and decode run, against the bounds of the same machine in the same run. Its subcommands, in
 * bench/, measure servers and whole requests.
 */
import { spawnSync } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import Table from 'cli-table3';
import { Command } from 'commander';
import { bench } from '../../index.js';
import { CliError, EXIT_USAGE, fileProblem } from '../failure.js';
import { addModelFlags, integer, type ModelFlags } from '../flags.js';
import { bytes, json, measure, percent } from '../format.js';
import { interruptible } from '../interrupt.js';
import { findModel } from '../load.js';
import { dim, note, write } from '../terminal.js';
import { benchCompareCommand } from './bench/compare.js';
import { commandLine } from './bench/files.js';
import { benchLatencyCommand, benchThroughputCommand } from './bench/offline.js';
import { benchServeCommand } from './bench/serve.js';
import { benchSpeculationCommand } from './bench/speculation.js';

/** What csrc/engine/bench.cpp returns; a row holds the fields that mean something for its phase. */
interface BenchResult {
  machine: { name: string; threads: number; kernels: string; readGbps: number; matrixGflops: number };
  shape: string;
  rows: BenchRow[];
}

interface BenchRow {
  phase: 'decode' | 'prefill' | 'load';
  part: string;
  tokensPerSecond?: number;
  milliseconds?: number;
  bytes?: number;
  gbps?: number;
  gflops?: number;
  boundMilliseconds?: number;
  boundBy?: string;
  fraction?: number;
}

interface Flags extends ModelFlags {
  shape?: string;
  format?: string;
  threads?: number;
  kernels?: string;
  compute?: string;
  kvCacheDtype?: string;
  context?: number;
  prefill?: number;
  repeats?: number;
  load?: boolean;
  json?: boolean;
  output?: string;
}

export function benchCommand(): Command {
  const command = new Command('bench')
    // A flag after the name of a subcommand is that subcommand's, also where both have one of that name.
    .enablePositionalOptions()
    .summary('measure prefill and decode against the bounds of this machine')
    .description(
      'Measures a model folder, or a synthetic one of a shape (nano | ling-mini-2.0 | ling-flash-2.0, with :N for N layers, ' +
        'the first of them dense). Every figure stands beside its bound: the read bandwidth or matrix peak of the same run.',
    )
    .argument('[model]', 'model folder, or owner/name of a hub')
    .option('--shape <name[:layers]>', 'random weights of this shape in place of a folder')
    .option('--format <name>', 'weight format of a shape: fp8 | bf16 | int4')
    .option('--threads <n>', '0: the cores this process may use', integer)
    .option('--kernels <path>', 'auto | reference | generic | avx2 | avx512 | avx512bf16 | amx')
    .option('--compute <type>', 'type of activations: bfloat16 | float32')
    .option('--kv-cache-dtype <type>', 'what the KV cache holds: auto | bfloat16 | fp8 (CUDA)')
    .option('--context <tokens>', 'tokens already in the cache when decoding', integer)
    .option('--prefill <tokens>', 'prompt tokens read at once', integer)
    .option('--repeats <n>', 'runs of each measurement, of which the median counts', integer)
    .option('--load', 'measure loading as well (model folders only)')
    .option('--json', 'print one JSON object')
    .option('--output <file>', 'write the JSON, with commit and command, to a file');
  addModelFlags(command)
    .addHelpText('after', '\nExample:\n  sigmoe bench models/nano\n  sigmoe bench --shape ling-mini-2.0:5 --output result.json')
    .action(runBench);
  command.addCommand(benchServeCommand());
  command.addCommand(benchThroughputCommand());
  command.addCommand(benchLatencyCommand());
  command.addCommand(benchSpeculationCommand());
  command.addCommand(benchCompareCommand());
  return command;
}

async function runBench(model: string | undefined, flags: Flags): Promise<void> {
  if ((model === undefined) === (flags.shape === undefined)) {
    throw new CliError('bench measures either a model folder or a --shape', 'try: sigmoe bench --shape nano', EXIT_USAGE);
  }
  const { json: asJson, output, download, revision, source, ...options } = flags;
  const measured = interruptible(async (signal) => {
    const hooks = { signal, onLine: (line: string) => note(dim(line)) };
    if (model === undefined) return bench(options, hooks);
    const { path } = await findModel(model, { download, revision, source }, signal);
    return bench({ ...options, model: path }, hooks);
  });
  const result = (await measured) as BenchResult;
  const record = { date: new Date().toISOString(), commit: currentCommit(), command: commandLine(), ...result };
  if (output !== undefined) {
    try {
      await writeFile(output, `${json(record, 2)}\n`);
    } catch (error) {
      throw new CliError(`result file ${output}: ${fileProblem(error)}`);
    }
  }
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

function report({ machine, shape, rows }: BenchResult): string {
  const table = new Table({
    head: ['phase', 'part', 'ms', 'tokens/s', 'bytes', 'GB/s', 'GFLOP/s', 'bound ms', 'bound by', 'fraction'],
    colAligns: ['left', 'left', 'right', 'right', 'right', 'right', 'right', 'right', 'left', 'right'],
    style: { head: [], border: [] },
  });
  const cell = (value: number | undefined, show: (value: number) => string) => (value === undefined ? '' : show(value));
  for (const row of rows) {
    table.push([
      row.phase,
      row.part,
      cell(row.milliseconds, measure),
      cell(row.tokensPerSecond, measure),
      cell(row.bytes, bytes),
      cell(row.gbps, measure),
      cell(row.gflops, measure),
      cell(row.boundMilliseconds, measure),
      row.boundBy ?? '',
      cell(row.fraction, percent),
    ]);
  }
  return (
    `${shape} on ${machine.name}, ${machine.kernels}; bounds of this run: ` +
    `read ${measure(machine.readGbps)} GB/s, matrix ${measure(machine.matrixGflops)} GFLOP/s\n${table.toString()}`
  );
}
