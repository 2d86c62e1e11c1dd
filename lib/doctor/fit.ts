/**
 * Whether a model fits a memory, and how fast one sequence can be at most: a token reads the weights it uses and its cache once,
 * so bandwidth over those bytes is a bound. Only a model that fits the processor's caches passes it.
 */
import { chosenStepTokens, STEP_SEQUENCES, workspaceOf } from '../memory_plan.js';
import type { ModelInfo } from '../types.js';
import type { Bandwidth, Fit, FitDevice, FitDtype } from './types.js';

/** Bytes of a weight of the body, its share of the scales included. Tables, head, router and norms stay BF16. */
const BODY_BYTES: Record<FitDtype, number> = {
  float32: 4,
  bf16: 2,
  fp8: 1 + 4 / (128 * 128),
  int8: 1, // and four bytes a row, of thousands
  int4: 0.5 + 2 / 128,
};
const PLAIN_BYTES = 2;

/** Data sheets, in 10^9 bytes a second. A GPU that is not here gets no estimate rather than a guess. */
const LISTED: readonly (readonly [RegExp, number])[] = [
  [/\bH200\b/, 4800],
  [/\bH100\b.*HBM3/, 3350],
  [/\bH20\b/, 4000],
  [/\bA100-SXM\S*-80GB/, 2039],
];

export function listedBandwidth(gpu: string): Bandwidth | null {
  const found = LISTED.find(([name]) => name.test(gpu));
  return found === undefined ? null : { gbps: found[1], source: 'listed' };
}

/** The type a checkpoint is stored in, by the name the engine gives it. */
export function storedDtype(weightFormat: string): FitDtype {
  if (weightFormat.startsWith('FP8')) return 'fp8';
  if (weightFormat.startsWith('INT8')) return 'int8';
  if (weightFormat.startsWith('INT4')) return 'int4';
  return weightFormat === 'F32' ? 'float32' : 'bf16';
}

/** What `quantize` can make of a type, itself first. */
export function reachableDtypes(stored: FitDtype): FitDtype[] {
  return stored === 'bf16' || stored === 'float32' ? [stored, 'fp8', 'int8'] : [stored];
}

export function fitOf(
  info: ModelInfo,
  dtype: FitDtype,
  context: number,
  { device, availableBytes, bandwidth }: FitDevice,
): Fit {
  const body = BODY_BYTES[dtype];
  const plain = Math.max(PLAIN_BYTES, dtype === 'float32' ? 4 : 0);
  const { embedding, head, attention, denseMlp, routed, shared, router, norms } = partsOf(info);
  const perRouted = info.shape.experts > 0 ? info.shape.activeExperts / info.shape.experts : 0;
  const scores = head > 0 ? head : embedding; // a tied head reads the table
  const weightBytes = (attention + denseMlp + routed + shared) * body + (embedding + head + router + norms) * plain;
  const kvBytes = context * info.memory.kvBytesPerToken;
  const maxBatchedTokens = chosenStepTokens(info, device, availableBytes - weightBytes - kvBytes);
  const workspaceBytes = workspaceOf(info, maxBatchedTokens, STEP_SEQUENCES);
  const totalBytes = weightBytes + kvBytes + workspaceBytes;
  const bytesPerToken =
    (attention + denseMlp + routed * perRouted + shared) * body + (scores + router + norms) * plain + kvBytes;
  return {
    dtype,
    stored: storedDtype(info.weightFormat) === dtype,
    weightBytes: Math.round(weightBytes),
    kvBytes,
    maxBatchedTokens,
    workspaceBytes,
    totalBytes: Math.round(totalBytes),
    fits: totalBytes <= availableBytes,
    bytesPerToken: Math.round(bytesPerToken),
    tokensPerSecond: bandwidth === null ? null : (bandwidth.gbps * 1e9) / bytesPerToken,
  };
}

function partsOf({ parameters }: ModelInfo) {
  const of = (name: string) => parameters.parts.find(({ part }) => part === name)?.parameters ?? 0;
  return {
    embedding: of('embedding'),
    head: of('head'),
    attention: of('attention'),
    denseMlp: of('dense MLP'),
    routed: of('routed experts'),
    shared: of('shared experts'),
    router: of('router'),
    norms: of('norms'),
  };
}
