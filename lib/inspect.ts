/** What can be told without loading a model: of its folder, of the devices, of the addon, of their speed. */
import { checkCallback, checkFields, checkSignal } from './checks.js';
import { AbortError, toEngineError } from './errors.js';
import { resolveModel } from './hub/index.js';
import { readRanks } from './load_options.js';
import { checkPath } from './model_source.js';
import type { NativeInfo } from './native.js';
import { addon, guarded, runCancellable } from './native_work.js';
import { chatTemplateSource } from './tokenizer.js';
import type { BenchOptions, ChatTemplateSource, DeviceStatus, InspectOptions, ModelInfo, SpeculationMethod } from './types.js';

/** What a model holds, from config.json and tensor headers; no weights are loaded. */
export async function inspect(model: string, options: InspectOptions = {}): Promise<ModelInfo> {
  checkPath(model);
  checkFields('inspect', options, ['download', 'revision', 'source', 'tensorParallelSize', 'enableExpertParallel']);
  const { download, revision, source } = options;
  const { tensorParallelSize, enableExpertParallel } = readRanks(options);
  const path = await resolveModel(model, { download, revision, source });
  try {
    const info = await addon().inspect(path, tensorParallelSize, enableExpertParallel);
    return describe(path, info, await chatTemplateSource(path));
  } catch (error) {
    throw toEngineError(error);
  }
}

/** The devices of this machine, and why one that could be here is not. */
export function devices(): DeviceStatus[] {
  return guarded(() => addon().devices());
}

/** Measures speed; options and result are those of csrc/engine/bench. */
export async function bench(options: Record<string, unknown>, hooks: BenchOptions = {}): Promise<unknown> {
  checkFields('bench', hooks, ['onLine', 'signal']);
  checkCallback('onLine', hooks.onLine);
  const signal = checkSignal(hooks.signal);
  const aborted = (by: AbortSignal) => new AbortError('the benchmark was aborted', undefined, { cause: by.reason });
  if (signal?.aborted) throw aborted(signal);
  const start = () => addon().bench(JSON.stringify(options), (line) => hooks.onLine?.(line));
  return JSON.parse(await runCancellable(start, signal, aborted)) as unknown;
}

/** Version of the native addon that was loaded. */
export function nativeVersion(): string {
  return addon().version;
}

/** What the engine says of a model, by the names of the public API. */
export function describe(path: string, info: NativeInfo, chatTemplate: ChatTemplateSource): ModelInfo {
  return {
    path,
    architecture: info.architecture,
    context: info.context,
    vocabSize: info.vocabSize,
    weightFormat: info.weightFormat,
    device: {
      name: info.device,
      description: info.deviceName,
      reason: info.deviceReason,
      kernels: info.kernels,
      compute: info.compute,
      kvCacheDtype: info.kvCacheDtype,
      prefillAttention: info.prefillAttention,
      threads: info.threads,
    },
    shape: {
      hiddenSize: info.hiddenSize,
      layers: info.layers,
      denseLayers: info.denseLayers,
      mtpLayers: info.mtpLayers,
      heads: info.heads,
      kvHeads: info.kvHeads,
      headDim: info.headDim,
      experts: info.experts,
      activeExperts: info.activeExperts,
      sharedExperts: info.sharedExperts,
    },
    parameters: { total: info.parameters, active: info.activeParameters, parts: info.parts },
    memory: {
      checkpointBytes: info.checkpointBytes,
      weightBytes: info.weightBytes,
      kvBytes: info.kvBytes,
      kvBytesPerToken: info.kvBytesPerToken,
      workspaceBytes: info.workspaceBytes,
    },
    limits: {
      maxNumSeqs: info.maxNumSeqs,
      maxBatchedTokens: info.maxBatchedTokens,
      kvCacheTokens: info.kvCacheTokens,
      tensorParallelSize: info.tensorParallelSize,
      dataParallelSize: info.dataParallelSize,
    },
    ranks: info.ranks,
    speculation:
      info.speculation === 'none' ? null : { method: info.speculation as SpeculationMethod, maxDepth: info.maxDraft },
    chatTemplate,
  };
}
