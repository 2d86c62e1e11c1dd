/** sigmoe doctor: one table of what this machine has; with a model, whether it fits and how fast it could be at most. */
import Table from 'cli-table3';
import { Command } from 'commander';
import pc from 'picocolors';
import { type DoctorReport, doctor, type Finding, type FitDtype, type ModelFit } from '../../index.js';
import { CliError } from '../failure.js';
import { type ModelFlags, integer as wholeNumber } from '../flags.js';
import { bytes, integer, json, measure } from '../format.js';
import { interruptible } from '../interrupt.js';
import { write } from '../terminal.js';

/** More than the caches of any processor hold. */
const CACHE_BYTES = 1e9;

interface Flags extends Pick<ModelFlags, 'revision' | 'source'> {
  context?: number;
  dtype: string;
  json?: boolean;
}

export function doctorCommand(): Command {
  return new Command('doctor')
    .summary('examine this machine, and whether a model fits it')
    .description(
      'Shows processor, memory, GPUs, driver, libraries, disk and the addon in use; with a model, whether it fits and its bound in tokens/s. Makes no connection. Ends with status 0 when the default device works.',
    )
    .argument('[model]', 'a model folder, or the id of a model in the cache')
    .option('--context <tokens>', 'length of the sequence to make room for; default: 4096', wholeNumber)
    .option('--dtype <type>', 'weights as: auto | float32 | bf16 | fp8 | int8 | int4', 'auto')
    .option('--revision <name>', 'a branch, a tag or a commit of the model')
    .option('--source <hub>', 'huggingface | modelscope')
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExample:\n  sigmoe doctor models/nano --context 2048')
    .action((model: string | undefined, flags: Flags) => interruptible((signal) => run(model, flags, signal)));
}

async function run(model: string | undefined, flags: Flags, signal: AbortSignal): Promise<void> {
  const { context, dtype, revision, source } = flags;
  // The library checks the names.
  const report = await doctor({ model, context, dtype: dtype as FitDtype | 'auto', revision, source, signal });
  await write(flags.json ? `${json(report, 2)}\n` : `${text(report)}\n`);
  const broken = report.findings.find(({ status }) => status === 'bad');
  if (!report.ok) throw new CliError(`the default device does not work: ${broken?.detail ?? 'none was found'}`);
}

function text({ findings, fit }: DoctorReport): string {
  const width = Math.max(...findings.map(({ topic }) => topic.length));
  const lines = findings.map(({ topic, status, detail }) => `${topic.padEnd(width)}  ${mark(status)}  ${detail}`);
  return fit === undefined ? lines.join('\n') : `${lines.join('\n')}\n\n${fitText(fit)}`;
}

function mark(status: Finding['status']): string {
  const colours = pc.createColors(process.stdout.isTTY && pc.isColorSupported);
  return { ok: colours.green('ok  '), note: colours.yellow('note'), bad: colours.red('BAD ') }[status];
}

function fitText({ model, context, device, availableBytes, bandwidth, rows }: ModelFit): string {
  const table = new Table({
    head: ['weights', 'weights', `KV, ${integer(context)} tokens`, 'workspace', 'all', 'fits', 'tokens/s at most'],
    style: { head: [], border: [] },
    colAligns: ['left', 'right', 'right', 'right', 'right', 'left', 'right'],
  });
  for (const row of rows) {
    table.push([
      row.stored ? `${row.dtype}, as stored` : row.dtype,
      bytes(row.weightBytes),
      bytes(row.kvBytes),
      `about ${bytes(row.workspaceBytes)}`,
      bytes(row.totalBytes),
      row.fits ? 'yes' : `no, ${bytes(row.totalBytes - availableBytes)} short`,
      row.tokensPerSecond === null ? 'not known' : measure(row.tokensPerSecond),
    ]);
  }
  const speed =
    bandwidth === null
      ? 'its bandwidth is not listed here, so there is no bound in tokens/s'
      : `${measure(bandwidth.gbps)} GB/s ${bandwidth.source === 'measured' ? 'measured just now' : 'by its data sheet'}`;
  const small = rows.some(({ weightBytes }) => weightBytes < CACHE_BYTES)
    ? '\nWeights this small may stay in the caches; then they are faster than memory.'
    : '';
  return `${model} on ${device}, ${bytes(availableBytes)} free; ${speed}\n${table.toString()}${small}`;
}
