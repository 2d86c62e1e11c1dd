/** sigmoe bench decode, prefill and kernels: steps, prompts and single ops beside the bounds of the device, in one run. */
import { Command } from 'commander';
import { CliError, EXIT_USAGE } from '../../failure.js';
import { addModelFlags, integer, type ModelFlags } from '../../flags.js';
import { findModel } from '../../load.js';
import { measureEngine, type OutputFlags } from './engine_result.js';

interface Flags extends ModelFlags, OutputFlags {
  shape?: string;
  [option: string]: unknown;
}

export function benchDecodeCommand(): Command {
  return engineCommand('decode', 'measure decode steps by batch size, and every op of them')
    .option('--batch <sizes>', 'sequences of a step, such as 1,8,32,128', list)
    .option('--context <tokens>', 'tokens in the cache, the own one included; a list, such as 1024,32768', list)
    .option(
      '--tensor-parallel-size <n>',
      'ranks that share the model, up to 8: whole steps, and their sums over ranks',
      integer,
    )
    .option('--enable-expert-parallel', 'whole experts on each of them')
    .addHelpText('after', '\nExample:\n  sigmoe bench decode --shape ling-mini-2.0:3 --batch 1,4 --repeats 5');
}

export function benchPrefillCommand(): Command {
  return engineCommand('prefill', 'measure prompts from an empty cache, and their parts')
    .option('--tokens <lengths>', 'tokens of the prompts, such as 512,2048,8192', list)
    .option('--chunk <tokens>', 'tokens of one step; default: 512 on a CPU, 16384 elsewhere', integer)
    .addHelpText('after', '\nExample:\n  sigmoe bench prefill --shape ling-mini-2.0:3 --tokens 512 --repeats 3');
}

export function benchKernelsCommand(): Command {
  return engineCommand('kernels', 'measure every op at the shapes of a model')
    .option('--batch <sizes>', 'rows of the ops of a decode step', list)
    .option('--tokens <lengths>', 'rows of the ops of a prompt', list)
    .option('--rows <n>', 'rows each expert gets, such as 1,8,64,256', list)
    .option('--context <tokens>', 'caches that attention reads', list)
    .addHelpText('after', '\nExample:\n  sigmoe bench kernels --shape nano:3 --batch 1,8 --tokens 64 --rows 1,8');
}

function engineCommand(mode: string, summary: string): Command {
  const command = new Command(mode)
    .summary(summary)
    .description(
      'Every figure stands beside its bound: counted bytes over the read stream, or FLOP over the matrix peak, measured in the ' +
        'same run. A shape gets random weights, made on the device where it can; experts that a step touched are counted.',
    )
    .argument('[model]', 'model folder, or owner/name of a hub')
    .option(
      '--shape <name[:layers]>',
      'random weights of this shape in place of a folder: nano | ling-mini-2.0 | ling-flash-2.0',
    )
    .option('--dtype <name>', "a shape's weights: fp8 | bf16 | int4")
    .option('--head <name>', "a shape's head: bf16 | fp8")
    .option('--device <name>', 'auto | cpu | cuda | ascend | ascend-twin (for tests)')
    .option('--kernels <path>', 'of the CPU: auto | reference | generic | avx2 | avx512 | avx512bf16 | amx')
    .option('--compute <type>', 'type of activations: bfloat16 | float32')
    .option('--kv-cache-dtype <type>', 'what the KV cache holds: auto | bfloat16 | fp8 (CUDA)')
    .option('--prefill-attention <type>', 'what attention of prompts multiplies in: auto | bfloat16 | fp8 (CUDA)')
    .option('--deterministic', 'one kernel class at every row count; decode shows what that costs')
    .option('--threads <n>', '0: the cores this process may use', integer)
    .option('--repeats <n>', 'runs of each measurement, of which the median counts', integer)
    .option('--json', 'print one JSON object')
    .option('--output <file>', 'write the JSON, with commit and command, to a file')
    .action((model: string | undefined, flags: Flags) => run(mode, model, flags));
  return addModelFlags(command);
}

async function run(mode: string, model: string | undefined, flags: Flags): Promise<void> {
  const { json, output, download, revision, source, ...options } = flags;
  if ((model === undefined) === (flags.shape === undefined)) {
    throw new CliError(
      'bench measures either a model folder or a --shape',
      `try: sigmoe bench ${mode} --shape nano`,
      EXIT_USAGE,
    );
  }
  await measureEngine(
    async (signal) => {
      if (model === undefined) return { mode, ...options };
      const { path } = await findModel(model, { download, revision, source }, signal);
      return { mode, ...options, model: path };
    },
    { json, output },
  );
}

function list(text: string): number[] {
  return text.split(',').map(integer);
}
