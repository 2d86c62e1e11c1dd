/** sigmoe bench speculation: what drafting tokens ahead gains, and what its parts cost. */
import Table from 'cli-table3';
import { Command } from 'commander';
import { benchSpeculation, type SpeculationRow } from '../../../bench/index.js';
import { CliError, EXIT_USAGE } from '../../failure.js';
import { addEngineFlags, type EngineFlags, integer, number } from '../../flags.js';
import { json, measure, percent } from '../../format.js';
import { interruptible } from '../../interrupt.js';
import { loadModel } from '../../load.js';
import { progress } from '../../progress.js';
import { write } from '../../terminal.js';
import { atLeast } from './dataset.js';
import { commandLine, save } from './files.js';
import { type ReplayFlags, replaySpeculation } from './replay.js';

interface SpeculationFlags extends ReplayFlags {
  outputLen: number;
  rounds: number;
  temperature: number;
}

export function benchSpeculationCommand(): Command {
  const command = new Command('speculation')
    .summary('measure what drafting tokens ahead gains')
    .description(
      'Answers real questions with drafts and without, in turns. Each batch size is measured with every draft that may be made ' +
        '(fixed) and with depth control, which drafts less where it would not pay. Method and depth are those of ' +
        '--speculative, --draft and --speculative-depth. With --shape the weights are random, and how many drafts come true is ' +
        'drawn from published acceptance: what a plain step, a step that checks drafts and drafting cost at full size.',
    )
    .argument('[model]', 'model folder')
    .option('--shape <name[:layers]>', 'random weights of this shape, and a random EAGLE3 draft, in place of a folder')
    .option(
      '--acceptance <tokens>',
      'of a shape: mean tokens of a step (default: 3.1), or shares of 1, 2, ... tokens with commas',
    )
    .option('--format <name>', 'of a shape: fp8 | bf16')
    .option('--context <tokens>', 'of a shape: tokens of a prompt', integer)
    .option('--steps <n>', 'of a shape: steps that count', integer)
    .option('--batch <sizes>', 'requests answered together, such as 1,8,32', sizes, [1, 8, 32])
    .option('--output-len <tokens>', 'tokens of an answer', integer, 128)
    .option('--rounds <n>', 'rounds that count; the median does', integer, 5)
    .option('--temperature <n>', 'of the answers, with the top-p, top-k and penalty of the model card', number, 0.6)
    .option('--output-json <file>', 'write the result to a file')
    .option('--json', 'print the result as JSON')
    .addHelpText('after', '\nExample:\n  sigmoe bench speculation models/nano --draft models/nano-eagle3 --batch 1,8');
  return addEngineFlags(command).action(run);
}

function sizes(text: string): number[] {
  const out = text.split(',').map(Number);
  if (out.some((size) => !Number.isInteger(size) || size < 1)) {
    throw new CliError(`--batch ${text}: expected whole numbers from 1, such as 1,8,32`, '', EXIT_USAGE);
  }
  return out;
}

async function run(folder: string | undefined, flags: SpeculationFlags): Promise<void> {
  if ((folder === undefined) === (flags.shape === undefined)) {
    throw new CliError('bench speculation measures either a model folder or a --shape', '', EXIT_USAGE);
  }
  if (folder === undefined) return replaySpeculation(flags);
  const ofShape = Object.entries({
    acceptance: flags.acceptance,
    format: flags.format,
    context: flags.context,
    steps: flags.steps,
  });
  const misplaced = ofShape.find(([, value]) => value !== undefined);
  if (misplaced) throw new CliError(`--${misplaced[0]} goes with --shape`, '', EXIT_USAGE);
  atLeast('--output-len', flags.outputLen, 2);
  atLeast('--rounds', flags.rounds, 1);
  if (flags.speculative === 'none') throw new CliError('--speculative none leaves nothing to measure', '', EXIT_USAGE);
  const setup = { batches: flags.batch, outputTokens: flags.outputLen, rounds: flags.rounds, temperature: flags.temperature };
  const rows: SpeculationRow[] = [];
  let facts = {};
  await interruptible(async (signal) => {
    for (const adaptive of [false, true]) {
      // A prompt found in the cache would be measured as nothing; all of a batch must run together.
      const engine: EngineFlags = {
        ...flags,
        prefixCache: false,
        maxNumSeqs: Math.max(...flags.batch),
        speculative: flags.speculative ?? 'auto',
        speculativeFixed: !adaptive,
      };
      await using model = await loadModel(folder, engine, signal);
      const { device, speculation } = model.info;
      facts = { model: folder, device: device.description, kernels: device.kernels, threads: device.threads, ...speculation };
      const bar = progress(adaptive ? 'controlled' : 'fixed depth');
      try {
        const onRound = (done: number) => bar.update(done, flags.batch.length * (flags.rounds + 1), '');
        rows.push(...(await benchSpeculation(model, adaptive, setup, { onRound, signal })));
      } finally {
        bar.stop();
      }
    }
  });
  const result = { date: new Date().toISOString(), command: commandLine(), ...facts, ...setup, rows };
  if (flags.outputJson !== undefined) await save(flags.outputJson, `${json(result, 2)}\n`);
  await write(flags.json ? `${json(result, 2)}\n` : `${report(facts as { method?: string; maxDepth?: number }, rows)}\n`);
}

function report({ method, maxDepth }: { method?: string; maxDepth?: number }, rows: readonly SpeculationRow[]): string {
  const table = new Table({
    head: [
      'batch',
      'depth',
      'plain tok/s',
      'tok/s',
      'gain',
      'steps that check',
      'accepted',
      'tokens/step',
      'plain ms',
      'check ms',
      'draft ms',
    ],
    colAligns: ['right', 'left', ...Array.from({ length: 9 }, () => 'right' as const)],
    style: { head: [], border: [] },
  });
  const some = (value: number) => (value > 0 ? measure(value) : '');
  for (const row of rows) {
    table.push([
      row.batch,
      row.adaptive ? 'controlled' : `fixed ${maxDepth}`,
      measure(row.plainTokensPerSecond),
      measure(row.tokensPerSecond),
      `${row.gain.toFixed(2)}x`,
      percent(row.verifyShare),
      percent(row.acceptance),
      row.tokensPerStep.toFixed(2),
      some(row.plainStepMs),
      some(row.verifyStepMs),
      some(row.draftMs),
    ]);
  }
  return `${method}, at most ${maxDepth} tokens drafted\n${table.toString()}`;
}
