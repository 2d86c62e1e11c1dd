/**
 * Quantises a model folder, shard by shard: into `<to>.partial`, which becomes `<to>` when everything is whole. The arithmetic
 * and the reading and writing of shards are csrc/engine/quantize*.
 */
import { type Dirent, existsSync } from 'node:fs';
import { copyFile, mkdir, readdir, rename, rm, rmdir, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { checkCallback, checkFields, checkSignal } from '../checks.js';
import { AbortError, EngineError, InvalidArgumentError, IoError, toEngineError } from '../errors.js';
import { resolveModel } from '../hub/index.js';
import { freeBytes } from '../hub/space.js';
import { native } from '../native.js';
import {
  describeJob,
  type FinishedShard,
  finishedShards,
  lock,
  STATE,
  saveProgress,
  sha256,
  type TensorError,
  writeDurably,
} from './progress.js';
import type { KindError, QuantizeFormat, QuantizeOptions, QuantizeProgress, QuantizeReport } from './types.js';

export type * from './types.js';

/** What the addon says quantising makes. */
interface QuantizePlan {
  unchanged: boolean;
  shards: { file: string; bytes: number; sourceBytes: number }[];
  config: string;
  index: string;
}

interface Settings {
  format: QuantizeFormat;
  threads: number;
  onProgress: ((progress: QuantizeProgress) => void) | undefined;
  signal: AbortSignal | undefined;
}

const INDEX = 'model.safetensors.index.json';
/** Side files larger than this are not a tokenizer or a template. */
const MOST_SIDE_FILE_BYTES = 256 * 1024 * 1024;
const LEAST_LEFT_BYTES = 64 * 1024 * 1024;

/**
 * Makes a quantised copy of a BF16 or F32 model, a folder or one of a hub that is in the cache. `to` must not exist; a run that was interrupted goes on where it stopped
 * when it is called again in the same way.
 *
 *     const { errors } = await quantize('AntAngelMed', 'AntAngelMed-FP8', { format: 'fp8' });
 */
export async function quantize(from: string, to: string, options: QuantizeOptions = {}): Promise<QuantizeReport> {
  const settings = readOptions(from, to, options);
  try {
    return await run(await resolveModel(from), resolve(to), settings);
  } catch (error) {
    if (settings.signal?.aborted) {
      throw new AbortError(`quantising was aborted; what is done is kept in ${resolve(to)}.partial`, undefined, {
        cause: settings.signal.reason,
      });
    }
    throw asEngineError(error);
  }
}

async function run(from: string, to: string, settings: Settings): Promise<QuantizeReport> {
  const { format, signal } = settings;
  signal?.throwIfAborted();
  if (existsSync(to)) throw new InvalidArgumentError('to', `to: ${to} exists`, 'name a folder that does not exist yet');
  const plan = JSON.parse(await native().planQuantization(from, format)) as QuantizePlan;
  const sides = await sideFiles(from);
  const job = await describeJob(
    from,
    format,
    plan.shards.map(({ file }) => file),
  );
  const working = `${to}.partial`;
  await mkdir(working, { recursive: true });
  const unlock = await lock(working);
  try {
    const finished = await finishedShards(working, job, signal);
    const kept = finished.size;
    await checkSpace(working, plan, finished, sides);
    await makeShards(from, working, plan, finished, settings, () => saveProgress(working, job, finished.values()));
    for (const { name } of sides) await copyFile(join(from, name), join(working, name));
    if (plan.index !== '') await writeDurably(join(working, INDEX), plan.index);
    await writeDurably(join(working, 'config.json'), plan.config);
    if (existsSync(to)) throw new InvalidArgumentError('to', `to: ${to} came to exist meanwhile`, 'move it away and try again');
    await rm(join(working, STATE), { force: true });
    await rename(working, to);
    return reportOf(from, to, format, plan, finished, kept);
  } finally {
    await unlock();
    await rmdir(working).catch(() => {}); // where nothing came of it
  }
}

async function makeShards(
  from: string,
  working: string,
  plan: QuantizePlan,
  finished: Map<string, FinishedShard>,
  { format, threads, onProgress, signal }: Settings,
  save: () => Promise<void>,
): Promise<void> {
  const bytesTotal = sum(plan.shards.map(({ sourceBytes }) => sourceBytes));
  let bytesBefore = 0;
  const report = (bytes: number) =>
    onProgress?.({
      bytesDone: bytesBefore + bytes,
      bytesTotal,
      shardsDone: finished.size,
      shardsTotal: plan.shards.length,
    });
  report(0);
  for (const { file, bytes, sourceBytes } of plan.shards) {
    if (!finished.has(file)) {
      signal?.throwIfAborted();
      const out = join(working, `${file}.new`);
      await rm(out, { force: true }); // of a run that was killed
      const tensors = await makeShard({ path: from, format, file, out, threads }, report, signal);
      const shard = { file, bytes, sha256: await sha256(out, signal), tensors };
      await rename(out, join(working, file));
      finished.set(file, shard);
      await save();
    }
    bytesBefore += sourceBytes;
    report(0);
  }
}

/** One shard; ends early by the signal or by a callback that threw. */
async function makeShard(
  job: { path: string; format: string; file: string; out: string; threads: number },
  report: (bytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<TensorError[]> {
  let thrown: { error: unknown } | undefined;
  const work = native().quantizeShard(job, (bytes) => {
    try {
      report(bytes);
    } catch (error) {
      thrown ??= { error };
      work.cancel();
    }
  });
  const cancel = () => work.cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    const tensors = JSON.parse(await work.promise) as TensorError[];
    if (thrown !== undefined) throw thrown.error;
    return tensors;
  } catch (error) {
    throw thrown !== undefined ? thrown.error : toEngineError(error);
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
}

/** What stands beside the weights and belongs to the model: tokenizer, template, generation settings, code, cards. */
async function sideFiles(from: string): Promise<{ name: string; bytes: number }[]> {
  const ofTheWeights = /\.safetensors$|\.bin$|\.pt$|\.pth$|\.gguf$/;
  const replaced = ['config.json', 'hf_quant_config.json', INDEX, 'selftest.json'];
  const sides = [];
  for (const entry of await readdir(from, { withFileTypes: true })) {
    if (entry.name.startsWith('.') || ofTheWeights.test(entry.name) || replaced.includes(entry.name)) continue;
    const bytes = await fileBytes(from, entry);
    if (bytes !== undefined && bytes <= MOST_SIDE_FILE_BYTES) sides.push({ name: entry.name, bytes });
  }
  return sides;
}

/** Undefined for what is no file, nor a link to one: the cache of Hugging Face holds links. */
async function fileBytes(folder: string, entry: Dirent): Promise<number | undefined> {
  if (!entry.isFile() && !entry.isSymbolicLink()) return undefined;
  const found = await stat(join(folder, entry.name)).catch(() => undefined);
  return found?.isFile() ? found.size : undefined;
}

async function checkSpace(
  working: string,
  plan: QuantizePlan,
  finished: Map<string, FinishedShard>,
  sides: { bytes: number }[],
): Promise<void> {
  const missing = plan.shards.filter(({ file }) => !finished.has(file));
  const needed = sum(missing.map(({ bytes }) => bytes)) + sum(sides.map(({ bytes }) => bytes)) + LEAST_LEFT_BYTES;
  const free = await freeBytes(working);
  if (free >= needed) return;
  throw new IoError(
    `${dirname(working)}: ${free} bytes are free, quantising needs ${needed} more`,
    'free some space, or write to another disk',
  );
}

function reportOf(
  from: string,
  to: string,
  format: QuantizeFormat,
  plan: QuantizePlan,
  finished: Map<string, FinishedShard>,
  keptShards: number,
): QuantizeReport {
  const shards = [...finished.values()].sort((a, b) => (a.file < b.file ? -1 : 1));
  return {
    from,
    to,
    format,
    unchanged: plan.unchanged,
    sourceBytes: sum(plan.shards.map(({ sourceBytes }) => sourceBytes)),
    bytes: sum(shards.map(({ bytes }) => bytes)),
    keptShards,
    shards: shards.map(({ file, bytes, sha256: sum }) => ({ file, bytes, sha256: sum })),
    errors: errorsByKind(shards.flatMap(({ tensors }) => tensors)),
  };
}

function errorsByKind(tensors: TensorError[]): KindError[] {
  const kinds = new Map<string, KindError>();
  for (const { name, kind, relativeError } of tensors) {
    const line = kinds.get(kind) ?? { kind, tensors: 0, mean: 0, worst: -1, worstTensor: '' };
    line.tensors += 1;
    line.mean += relativeError;
    if (relativeError > line.worst) Object.assign(line, { worst: relativeError, worstTensor: name });
    kinds.set(kind, line);
  }
  for (const line of kinds.values()) line.mean /= line.tensors;
  return [...kinds.values()].sort((a, b) => (a.kind < b.kind ? -1 : 1));
}

function readOptions(from: string, to: string, options: QuantizeOptions): Settings {
  for (const [name, value] of [
    ['from', from],
    ['to', to],
  ]) {
    if (typeof value === 'string' && value !== '' && !value.includes('\0')) continue;
    throw new InvalidArgumentError(name ?? '', `${name}: expected the path of a folder, found ${JSON.stringify(value)}`);
  }
  checkFields('quantize', options, ['format', 'threads', 'onProgress', 'signal']);
  checkCallback('onProgress', options.onProgress);
  const { format = 'fp8', threads = 0 } = options;
  if (format !== 'fp8' && format !== 'int8') {
    throw new InvalidArgumentError('format', `format: expected fp8 or int8, found ${JSON.stringify(format)}`);
  }
  if (!Number.isInteger(threads) || threads < 0 || threads > 1024) {
    throw new InvalidArgumentError('threads', `threads: expected a whole number from 0 to 1024, found ${String(threads)}`);
  }
  return { format, threads, onProgress: options.onProgress, signal: checkSignal(options.signal) };
}

/** What the operating system refused, with its path; what the addon threw; anything else, such as a callback's, as it is. */
function asEngineError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof EngineError) return error;
  if ('syscall' in error) return new IoError(error.message, 'check the permissions and the disk', { cause: error });
  return 'hint' in error ? toEngineError(error) : error;
}

function sum(values: number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
