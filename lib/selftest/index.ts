/**
 * The self-test: known prompts through a loaded model, compared with what the checkpoint is known to answer. `serve --selftest`
 * runs it before a server takes requests.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { checkCallback, checkFields, checkSignal } from '../checks.js';
import { AbortError, CheckpointError, InvalidArgumentError, IoError, NotFoundError } from '../errors.js';
import { nativeVersion } from '../inspect.js';
import { Model } from '../model.js';
import type { LoadOptions } from '../types.js';
import { fingerprint } from './fingerprint.js';
import { activationsOf, countBeyond, EXACT_BOUND, errorsOf, judge, median, reducedBound, worst } from './judge.js';
import { greedy, keep, scoresOf } from './measure.js';
import { isRecording } from './recording.js';
import { RECORDING_FORMAT, type RecordedCase, type SelftestRecording, type SelftestReport } from './types.js';

export type * from './types.js';

/** Beside config.json. */
export const RECORDING_FILE = 'selftest.json';
const TOKENS = 24;

/** Asked of every checkpoint: its own subject, another language, code, and a text to go on with. */
const QUESTIONS = [
  'What is asthma?',
  'What are the symptoms of diabetes?',
  'A 60-year-old man has sudden chest pain. What should be done first?',
  '我最近经常头痛，尤其是熬夜后更明显，该怎么办？',
  'Write a function that converts degrees Fahrenheit to Celsius.',
  'List three causes of anaemia, one per line.',
];

export interface SelftestOptions {
  /** A recording, or its file. Default: `selftest.json` of the model folder. */
  recording?: SelftestRecording | string | undefined;
  onProgress?: ((progress: { done: number; total: number }) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Compares a loaded model with its recording. A model that is damaged, of another checkpoint or run by a broken kernel does not
 * pass; `report.passed` says so, and `problems` what was found.
 */
export async function selftest(model: Model, options: SelftestOptions = {}): Promise<SelftestReport> {
  checkFields('selftest', options, ['recording', 'onProgress', 'signal']);
  checkCallback('onProgress', options.onProgress);
  const signal = checkSignal(options.signal);
  const { info } = model;
  const recording = await findRecording(info.path, options.recording);
  const rule = isExact(model) ? 'exact' : 'reduced';
  const activations = activationsOf(info);
  const report: SelftestReport = {
    passed: false,
    model: info.path,
    device: info.device.description,
    kernels: info.device.kernels,
    compute: info.device.compute,
    rule,
    bound: rule === 'exact' ? EXACT_BOUND : reducedBound(recording.bfloat16, activations),
    cases: [],
    problems: [],
  };
  const found = await fingerprint(info.path);
  if (found !== recording.fingerprint) {
    report.problems.push(
      `the recording is of other weights (${recording.weights}, ${recording.fingerprint.slice(0, 12)}; these are ${found.slice(0, 12)})`,
    );
    return report;
  }
  checkRoom(model, recording);
  const total = recording.cases.length;
  for (const [done, recorded] of recording.cases.entries()) {
    options.onProgress?.({ done, total });
    if (signal?.aborted) throw new AbortError('the self-test was aborted', undefined, { cause: signal.reason });
    const tokens = await greedy(model, recorded.prompt, recorded.tokens.length, signal);
    const logits = await scoresOf(model, recorded.prompt, recorded.tokens, signal);
    report.cases.push(judge(recorded, { tokens, logits }, rule, recording.bfloat16, activations));
  }
  options.onProgress?.({ done: total, total });
  report.passed = report.cases.every(({ passed }) => passed);
  return report;
}

/**
 * Records what a checkpoint answers, in float32; then runs it once more in BF16, where the machine has such products, to learn how
 * far those are off. Record on a machine and a copy of the weights that are known to be good.
 */
export async function recordSelftest(path: string, load: LoadOptions = {}): Promise<SelftestRecording> {
  const recording = await withModel(path, { ...load, compute: 'float32' }, async (model) => {
    if (!isExact(model)) {
      throw new InvalidArgumentError(
        'device',
        `${model.info.device.description} has no float32 mode to record in`,
        'use the CPU',
      );
    }
    const cases: RecordedCase[] = [];
    for (const question of QUESTIONS) {
      const prompt = await model.tokenizer.encodeChat([{ role: 'user', content: question }], { addGenerationPrompt: true });
      const tokens = await greedy(model, prompt, TOKENS, load.signal);
      const logits = await scoresOf(model, prompt, tokens, load.signal);
      cases.push({ question, prompt, tokens: [...tokens], scores: logits.map(keep) });
    }
    const { device } = model.info;
    const recordedBy = { version: nativeVersion(), device: device.description, kernels: device.kernels };
    const made: SelftestRecording = {
      format: RECORDING_FORMAT,
      fingerprint: await fingerprint(model.info.path),
      weights: model.info.weightFormat,
      recordedBy,
      bfloat16: null,
      cases,
    };
    return made;
  });
  recording.bfloat16 = await withModel(path, { ...load, compute: 'bfloat16' }, async (model) => {
    if (model.info.device.compute !== 'bfloat16') return null;
    const errors: number[] = [];
    const beyond: number[] = [];
    const byCase: number[][] = [];
    for (const recorded of recording.cases) {
      const ofCase = errorsOf(recorded, await scoresOf(model, recorded.prompt, recorded.tokens, load.signal));
      byCase.push(ofCase);
      errors.push(...ofCase);
    }
    const figures = {
      kernels: model.info.device.kernels,
      medianError: median(errors),
      worstError: worst(errors),
      beyondBound: 0,
    };
    for (const ofCase of byCase) beyond.push(countBeyond(ofCase, reducedBound(figures, activationsOf(model.info))));
    return { ...figures, beyondBound: Math.max(...beyond) };
  });
  return recording;
}

/** Writes a recording; an existing file is replaced. */
export async function saveRecording(recording: SelftestRecording, file: string): Promise<void> {
  try {
    await writeFile(file, `${JSON.stringify(recording)}\n`);
  } catch (cause) {
    throw new IoError(`${file}: cannot be written: ${(cause as Error).message}`, 'name another file', { cause });
  }
}

/** Float32 in products and in the KV cache: nothing that would explain a difference. */
function isExact({ info }: Model): boolean {
  return info.device.compute === 'float32' && info.device.kvCacheDtype === 'float32';
}

function checkRoom({ info }: Model, recording: SelftestRecording): void {
  const longest = Math.max(...recording.cases.map(({ prompt, tokens }) => prompt.length + tokens.length));
  if (longest <= info.context) return;
  throw new InvalidArgumentError(
    'maxModelLen',
    `the self-test needs sequences of ${longest} tokens; this model was loaded for ${info.context}`,
    'raise maxModelLen',
  );
}

async function findRecording(folder: string, given: SelftestRecording | string | undefined): Promise<SelftestRecording> {
  if (typeof given === 'object') return checked(given, 'recording');
  const file = given ?? join(folder, RECORDING_FILE);
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code !== 'ENOENT') throw new IoError(`${file}: cannot be read: ${message}`, '', { cause });
    throw new NotFoundError(`${file}: no recording`, 'make one on a machine you trust: sigmoe selftest MODEL --record', {
      cause,
    });
  }
  try {
    return checked(JSON.parse(text), file);
  } catch (cause) {
    if (cause instanceof CheckpointError) throw cause;
    throw new CheckpointError(`${file}: not JSON`, 'record it again', { cause });
  }
}

function checked(value: unknown, where: string): SelftestRecording {
  if (isRecording(value)) return value;
  throw new CheckpointError(`${where}: not a self-test recording of this version (${RECORDING_FORMAT})`, 'record it again');
}

async function withModel<T>(path: string, load: LoadOptions, body: (model: Model) => Promise<T>): Promise<T> {
  const model = await Model.load(path, load);
  try {
    return await body(model);
  } finally {
    await model.dispose();
  }
}
