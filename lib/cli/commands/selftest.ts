/** sigmoe selftest: does this machine compute what the checkpoint is known to answer? */
import { join } from 'node:path';
import Table from 'cli-table3';
import { Command } from 'commander';
import { RECORDING_FILE, recordSelftest, type SelftestReport, saveRecording, selftest } from '../../index.js';
import { CliError } from '../failure.js';
import { addEngineFlags, type EngineFlags, engineOptions } from '../flags.js';
import { bytes, json } from '../format.js';
import { interruptible } from '../interrupt.js';
import { findModel, loadModel } from '../load.js';
import { progress } from '../progress.js';
import { write } from '../terminal.js';

interface Flags extends EngineFlags {
  record?: string | true;
  recording?: string;
  json?: boolean;
}

export function selftestCommand(): Command {
  const command = new Command('selftest')
    .summary('compare a model on this machine with its recorded answers')
    .description(
      'Runs known prompts and compares tokens and scores with a recording of the checkpoint: exactly in float32, within the error of the narrower type else.',
    )
    .argument('<model>', 'model folder')
    .option('--recording <file>', `the recording; default: ${RECORDING_FILE} of the model folder`)
    .option('--record [file]', `make a recording instead; default: ${RECORDING_FILE} of the model folder`)
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExample:\n  sigmoe selftest models/nano --compute float32');
  return addEngineFlags(command).action((path: string, flags: Flags) =>
    interruptible((signal) => (flags.record === undefined ? run(path, flags, signal) : record(path, flags, signal))),
  );
}

async function run(path: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const model = await loadModel(path, flags, signal);
  const bar = progress('testing');
  let report: SelftestReport;
  try {
    report = await selftest(model, {
      recording: flags.recording,
      signal,
      onProgress: ({ done, total }) => bar.update(done, total, `${done} of ${total} prompts`),
    });
  } finally {
    bar.stop();
    await model.dispose();
  }
  await write(flags.json ? `${json(report, 2)}\n` : `${text(report)}\n`);
  if (!report.passed) throw new CliError(failureOf(report), 'the weights may be damaged, or this device computes wrongly');
}

async function record(named: string, given: Flags, signal: AbortSignal): Promise<void> {
  const { path, flags } = await findModel(named, given, signal);
  const file = typeof flags.record === 'string' ? flags.record : join(path, RECORDING_FILE);
  const bar = progress('recording');
  try {
    const onProgress = ({ bytesDone, bytesTotal }: { bytesDone: number; bytesTotal: number }) =>
      bar.update(bytesDone, bytesTotal, `${bytes(bytesDone)} of ${bytes(bytesTotal)} loaded`);
    const recording = await recordSelftest(path, { ...engineOptions(flags), signal, onProgress });
    await saveRecording(recording, file);
    const { cases, fingerprint, bfloat16 } = recording;
    const facts = { file, cases: cases.length, fingerprint, bfloat16 };
    const off = bfloat16 === null ? 'no BF16 products here' : `BF16 is off by ${(100 * bfloat16.medianError).toFixed(2)}%`;
    await write(flags.json ? `${json(facts, 2)}\n` : `${file}: ${cases.length} prompts recorded in float32; ${off}\n`);
  } finally {
    bar.stop();
  }
}

/** The first thing that is wrong, for the one line of an error. */
export function failureOf({ problems, cases }: SelftestReport): string {
  const failed = cases.filter(({ passed }) => !passed);
  const first = problems[0] ?? `"${failed[0]?.question}": ${failed[0]?.problems[0]}`;
  return `the self-test failed: ${first}${failed.length > 1 ? ` (and ${failed.length - 1} more prompts)` : ''}`;
}

function text(report: SelftestReport): string {
  const percent = (value: number) => (value < 1e-3 ? value.toExponential(1) : `${(100 * value).toFixed(2)}%`);
  const head = `${report.device}, ${report.kernels}, ${report.compute}; every position within ${percent(report.bound)}`;
  const table = new Table({
    head: ['prompt', 'same tokens', 'median error', 'worst', ''],
    style: { head: [], border: [] },
    colAligns: ['left', 'right', 'right', 'right', 'left'],
  });
  for (const { question, passed, tokens, sameTokens, medianError, worstError } of report.cases) {
    const verdict = passed ? 'passed' : 'FAILED';
    table.push([question.slice(0, 40), `${sameTokens} of ${tokens}`, percent(medianError), percent(worstError), verdict]);
  }
  const problems = [
    ...report.problems,
    ...report.cases.flatMap(({ question, problems }) => problems.map((p) => `${question}: ${p}`)),
  ];
  return [head, table.toString(), ...problems, report.passed ? 'passed' : 'FAILED'].join('\n');
}
