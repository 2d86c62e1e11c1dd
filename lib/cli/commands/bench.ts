/**
 * sigmoe bench: how fast prefill and decode run, against the bounds of the same machine in the same run. Its subcommands, in
 * bench/, measure steps, prompts and ops of any shape, servers and whole requests.
 */
import { Command } from 'commander';
import { CliError, EXIT_USAGE } from '../failure.js';
import { addModelFlags, integer, type ModelFlags } from '../flags.js';
import { findModel } from '../load.js';
import { benchCompareCommand } from './bench/compare.js';
import { benchDecodeCommand, benchKernelsCommand, benchPrefillCommand } from './bench/engine.js';
import { measureEngine, type OutputFlags } from './bench/engine_result.js';
import { benchLatencyCommand, benchThroughputCommand } from './bench/offline.js';
import { benchServeCommand } from './bench/serve.js';
import { benchSpeculationCommand } from './bench/speculation.js';

interface Flags extends ModelFlags, OutputFlags {
  shape?: string;
  format?: string;
  device?: string;
  threads?: number;
  kernels?: string;
  compute?: string;
  kvCacheDtype?: string;
  prefillAttention?: string;
  context?: number;
  prefill?: number;
  repeats?: number;
  load?: boolean;
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
    .option('--device <name>', 'auto | cpu | cuda | ascend | ascend-twin (for tests)')
    .option('--threads <n>', '0: the cores this process may use', integer)
    .option('--kernels <path>', 'auto | reference | generic | avx2 | avx512 | avx512bf16 | amx; on cuda: auto | mma')
    .option('--compute <type>', 'type of activations: bfloat16 | float32')
    .option('--kv-cache-dtype <type>', 'what the KV cache holds: auto | bfloat16 | fp8 (CUDA)')
    .option('--prefill-attention <type>', 'what attention of prompts multiplies in: auto | bfloat16 | fp8 (CUDA)')
    .option('--context <tokens>', 'tokens already in the cache when decoding', integer)
    .option('--prefill <tokens>', 'prompt tokens read at once', integer)
    .option('--repeats <n>', 'runs of each measurement, of which the median counts', integer)
    .option('--load', 'measure loading as well (model folders only)')
    .option('--json', 'print one JSON object')
    .option('--output <file>', 'write the JSON, with commit and command, to a file');
  addModelFlags(command)
    .addHelpText('after', '\nExample:\n  sigmoe bench models/nano\n  sigmoe bench --shape ling-mini-2.0:5 --output result.json')
    .action(runBench);
  command.addCommand(benchDecodeCommand());
  command.addCommand(benchPrefillCommand());
  command.addCommand(benchKernelsCommand());
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
  const { json, output, download, revision, source, ...options } = flags;
  await measureEngine(
    async (signal) => {
      if (model === undefined) return { ...options };
      const { path } = await findModel(model, { download, revision, source }, signal);
      return { ...options, model: path };
    },
    { json, output },
  );
}
