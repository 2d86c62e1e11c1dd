/** sigmoe quantize: a smaller copy of a BF16 or F32 model folder, and what it cost in accuracy. */
import Table from 'cli-table3';
import { Command } from 'commander';
import { type QuantizeFormat, type QuantizeReport, quantize } from '../../index.js';
import { addModelFlags, type ModelFlags, integer as wholeNumber } from '../flags.js';
import { bytes, json } from '../format.js';
import { interruptible } from '../interrupt.js';
import { findModel } from '../load.js';
import { progress } from '../progress.js';
import { note, write } from '../terminal.js';

interface Flags extends ModelFlags {
  format: string;
  threads?: number;
  json?: boolean;
}

export function quantizeCommand(): Command {
  const command = new Command('quantize')
    .summary('make an FP8 or INT8 copy of a model folder')
    .description(
      'Makes a quantised copy of a BF16 or F32 model folder, shard by shard. Interrupted, it goes on when the same command is given again.',
    )
    .argument('<from>', 'a model in BF16 or F32: a folder, or the id of one in the cache')
    .argument('<to>', 'folder to make; must not exist')
    .option('--format <name>', 'fp8 (E4M3, blocks of 128 x 128, as published) | int8 (per output channel)', 'fp8')
    .option('--threads <n>', '0: the cores this process may use', wholeNumber)
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExample:\n  sigmoe quantize AntAngelMed AntAngelMed-FP8 --format fp8');
  return addModelFlags(command).action((from: string, to: string, flags: Flags) =>
    interruptible((signal) => run(from, to, flags, signal)),
  );
}

async function run(named: string, to: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const { path: from } = await findModel(named, flags, signal);
  const bar = progress('quantising');
  let report: QuantizeReport;
  try {
    report = await quantize(from, to, {
      format: flags.format as QuantizeFormat, // the library checks the name
      threads: flags.threads,
      signal,
      onProgress: ({ bytesDone, bytesTotal, shardsDone, shardsTotal }) =>
        bar.update(
          bytesDone,
          bytesTotal,
          `${bytes(bytesDone)} of ${bytes(bytesTotal)}, ${shardsDone} of ${shardsTotal} shards`,
        ),
    });
  } finally {
    bar.stop();
  }
  if (report.keptShards > 0) note(`${report.keptShards} shards of an earlier run were verified and kept`);
  await write(flags.json ? `${json(report, 2)}\n` : `${text(report)}\n`);
}

function text(report: QuantizeReport): string {
  const sizes = `${report.to}: ${bytes(report.bytes)} of weights, ${bytes(report.sourceBytes)} before`;
  if (report.unchanged) return `${sizes}; the checkpoint had this format already and was copied`;
  const table = new Table({
    head: ['tensors', 'number', 'mean error', 'worst', 'where'],
    style: { head: [], border: [] },
    colAligns: ['left', 'right', 'right', 'right', 'left'],
  });
  const percent = (value: number) => `${(100 * value).toFixed(2)}%`;
  for (const { kind, tensors, mean, worst, worstTensor } of report.errors) {
    table.push([kind, tensors, percent(mean), percent(worst), worstTensor]);
  }
  return `${sizes}\n${table.toString()}`;
}
