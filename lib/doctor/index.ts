/** sigmoe doctor: what this machine has, what is missing, whether a model fits and how fast it could be at most. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkFields, checkSignal } from '../checks.js';
import { AbortError, InvalidArgumentError } from '../errors.js';
import { cacheRootOf } from '../hub/environment.js';
import { freeBytes } from '../hub/space.js';
import { devices, inspect } from '../inspect.js';
import { Model } from '../model.js';
import { addonOrigin, native } from '../native.js';
import { selftest } from '../selftest/index.js';
import type { DeviceStatus, ModelInfo } from '../types.js';
import { describeFindings } from './findings.js';
import { fitOf, listedBandwidth, reachableDtypes, storedDtype } from './fit.js';
import { readGpus } from './gpus.js';
import { findLibraries } from './libraries.js';
import { readMachine } from './machine.js';
import { thisMachine } from './system.js';
import type { Bandwidth, DoctorOptions, DoctorReport, FitDtype, GpuFacts, MachineFacts, ModelFit } from './types.js';

export type * from './types.js';

const DTYPES: readonly FitDtype[] = ['float32', 'bf16', 'fp8', 'int8', 'int4'];
const USUAL_CONTEXT = 4096;

/** The demonstration model: of a clone, or of the package that holds it. */
function bundledModel(): string | undefined {
  const own = fileURLToPath(new URL('../../models/nano', import.meta.url));
  if (existsSync(own)) return own;
  try {
    return dirname(createRequire(import.meta.url).resolve('@sigmoe/nano/package.json'));
  } catch {
    return undefined;
  }
}

/**
 * Looks at the machine and, given a model, says whether it fits. Makes no connection. `ok` is whether the device that `auto` picks
 * works: where the bundled model is at hand, by its self-test.
 */
export async function doctor(options: DoctorOptions = {}): Promise<DoctorReport> {
  checkFields('doctor', options, ['model', 'context', 'dtype', 'revision', 'source', 'signal']);
  checkOptions(options);
  const signal = checkSignal(options.signal);
  const examined = options.model === undefined ? undefined : await examine(options.model, options);
  const machine = readMachine(thisMachine);
  const gpu = await readGpus(thisMachine);
  const found = devices();
  const device = found.find(({ available }) => available)?.device ?? null;
  const trial = await tryBundled(signal);
  const cachePath = cacheRootOf(options.source ?? 'huggingface');
  const facts = {
    machine,
    gpu,
    libraries: findLibraries(thisMachine),
    addon: addonOrigin(),
    cache: { path: cachePath, freeBytes: await freeBytes(cachePath).catch(() => null) },
    node: process.version,
  };
  const report: DoctorReport = {
    ok: device !== null && trial.works,
    device,
    findings: describeFindings({ ...facts, devices: found, trial: trial.text, works: trial.works }),
    ...facts,
  };
  if (signal?.aborted) throw new AbortError('the examination was aborted', undefined, { cause: signal.reason });
  if (examined !== undefined) report.fit = await modelFit(examined, options.dtype ?? 'auto', found, machine, gpu);
  return report;
}

interface Examined {
  info: ModelInfo;
  context: number;
}

/** What the folder holds, and the length of sequence to make room for. */
async function examine(model: string, { context: asked, revision, source }: DoctorOptions): Promise<Examined> {
  const info = await inspect(model, { revision, source });
  const context = asked ?? Math.min(USUAL_CONTEXT, info.context);
  if (context <= info.context) return { info, context };
  throw new InvalidArgumentError(
    'context',
    `context: ${context} tokens asked for, the model has ${info.context}`,
    'lower it, or add a YaRN rope_scaling entry to config.json',
  );
}

async function modelFit(
  { info, context }: Examined,
  dtype: FitDtype | 'auto',
  found: DeviceStatus[],
  machine: MachineFacts,
  gpu: GpuFacts,
): Promise<ModelFit> {
  const first = gpu.gpus[0];
  const onGpu = first !== undefined && found.some(({ device, available }) => device === 'cuda' && available);
  const availableBytes = onGpu ? (first.freeBytes ?? first.memoryBytes ?? 0) : machine.memory.availableBytes;
  const bandwidth: Bandwidth | null = onGpu
    ? listedBandwidth(first.name)
    : { gbps: await native().memoryBandwidth(), source: 'measured' };
  const dtypes = dtype === 'auto' ? reachableDtypes(storedDtype(info.weightFormat)) : [dtype];
  return {
    model: info.path,
    context,
    device: onGpu ? first.name : machine.cpu.name,
    availableBytes,
    bandwidth,
    rows: dtypes.map((each) => fitOf(info, each, context, { device: onGpu ? 'cuda' : 'cpu', availableBytes, bandwidth })),
  };
}

/** The bundled model on the default device, where it is installed: the only proof that the device computes. */
async function tryBundled(signal: AbortSignal | undefined): Promise<{ works: boolean; text: string }> {
  const bundled = bundledModel();
  if (bundled === undefined)
    return { works: true, text: 'not tried: @sigmoe/nano, the model it would be tried with, is not installed' };
  try {
    const model = await Model.load(bundled, { signal });
    try {
      const { passed, problems, cases, device } = await selftest(model, { signal });
      const failure = problems[0] ?? cases.flatMap((each) => each.problems)[0];
      return { works: passed, text: passed ? `the bundled model passes its self-test on ${device}` : String(failure) };
    } finally {
      await model.dispose();
    }
  } catch (error) {
    if (signal?.aborted) throw error;
    return { works: false, text: error instanceof Error ? error.message : String(error) };
  }
}

function checkOptions({ context, dtype }: DoctorOptions): void {
  if (context !== undefined && !(Number.isInteger(context) && context > 0)) {
    throw new InvalidArgumentError('context', `context: expected a number of tokens, found ${String(context)}`);
  }
  if (dtype !== undefined && dtype !== 'auto' && !DTYPES.includes(dtype)) {
    throw new InvalidArgumentError('dtype', `dtype: expected auto, ${DTYPES.join(', ')}, found ${JSON.stringify(dtype)}`);
  }
}
