/**
 * The native addon: the hand-written types of every call it has, and the one place that asks for it. Nothing else in lib
 * touches it. The C++ side of this contract is csrc/binding.
 */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type AddonOrigin, loadAddon } from './addon.js';

/** Options of a load; every field is checked by lib before it gets here. */
export interface NativeEngineOptions {
  device: string;
  kernels: string;
  compute: 'bfloat16' | 'float32' | 'int8';
  deterministic: boolean;
  kvCacheDtype: 'auto' | 'bfloat16' | 'fp8';
  prefillAttention: 'auto' | 'bfloat16' | 'fp8';
  threads: number;
  tensorParallelSize: number;
  enableExpertParallel: boolean;
  dataParallelSize: number;
  /** Of the accelerators of this machine. */
  firstDevice: number;
  /** Of `nodeCount` processes that share the ranks; 0 leads. */
  nodeRank: number;
  nodeCount: number;
  nodeAddress: string;
  nodePort: number;
  /** Empty: none. */
  nodeSecret: string;
  nodeAllowNoSecret: boolean;
  nodesOnThisMachine: number;
  nodeJoinMs: number;
  nodeSilenceMs: number;
  maxModelLen: number;
  maxNumSeqs: number;
  /** 0: chosen for the device. */
  maxBatchedTokens: number;
  kvCacheTokens: number;
  /** 0: the device's default. */
  memoryUtilization: number;
  maxWaiting: number;
  prefixCache: boolean;
  mtp: boolean;
  /** none | auto | eagle3 | mtp | ngram */
  speculation: string;
  /** Folder of an EAGLE3 draft; empty: none. */
  draft: string;
  /** 0: what suits the method. */
  maxDraft: number;
  adaptiveDepth: boolean;
}

export interface NativeInfo {
  architecture: string;
  device: string;
  deviceName: string;
  deviceReason: string;
  kernels: string;
  compute: string;
  /** Empty where no weights are loaded. */
  kvCacheDtype: string;
  /** Empty where no weights are loaded. */
  prefillAttention: string;
  weightFormat: string;
  context: number;
  vocabSize: number;
  hiddenSize: number;
  layers: number;
  denseLayers: number;
  mtpLayers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  experts: number;
  activeExperts: number;
  sharedExperts: number;
  parameters: number;
  activeParameters: number;
  parts: { part: string; parameters: number }[];
  checkpointBytes: number;
  weightBytes: number;
  kvBytesPerToken: number;
  kvBytes: number;
  workspaceBytes: number;
  kvCacheTokens: number;
  threads: number;
  tensorParallelSize: number;
  dataParallelSize: number;
  /** Over all copies, like the bytes and kvCacheTokens. */
  maxNumSeqs: number;
  maxBatchedTokens: number;
  /** The method that runs, or none. */
  speculation: string;
  maxDraft: number;
  eosIds: number[];
  /** Of `inspect`: what each rank keeps of the checkpoint, and of a token's KV cache. */
  ranks: { weightBytes: number; kvBytesPerToken: number }[];
}

/** One generation. `maxTokens` -1 runs to the end of the context; `logprobs` -1 means none. */
export interface NativeGenerateRequest {
  prompt: Int32Array;
  maxTokens: number;
  minTokens: number;
  stopIds: Int32Array;
  seed: bigint;
  temperature: number;
  topP: number;
  topK: number;
  minP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  logitBiasIds: Int32Array;
  logitBiasValues: Float32Array;
  logprobs: number;
  promptLogprobs: number;
  /** Empty: all. */
  allowedIds: Int32Array;
  badWords: Int32Array[];
  /** Tokens of reasoning before its end is forced; -1: no bound. */
  thinkingBudget: number;
  /** The prompt ends inside the reasoning. */
  thinkingOpen: boolean;
  thinkingBeginIds: Int32Array;
  thinkingEndIds: Int32Array;
  /** Every token waits for its `setMasks`. */
  masked: boolean;
  priority: number;
  /** From submission; -1: none. */
  deadlineMs: number;
  /** Tokens drafted at once; 0: none; -1: as many as the model was loaded for. */
  maxDraft: number;
  /** 128 bits as four words. */
  cacheSalt: Int32Array;
}

export interface NativeFailure {
  request: number;
  code: string;
  message: string;
  hint: string;
}

/** Values of `NativeStepEvent.finish`. */
export const Finish = { none: 0, stop: 1, length: 2, aborted: 3, error: 4, deadline: 5 } as const;

/** Alternatives reported per token: the width of `topIds` and `topLogprobs`. */
export const MAX_LOGPROBS = 20;

/**
 * What one engine step produced: entry i is one sampled token, or one request's end without a token (token -1). A request whose
 * drafts came true has several entries, in order.
 */
export interface NativeStepEvent {
  requests: Float64Array;
  tokens: Int32Array;
  finish: Uint8Array;
  /** Present when any entry's request asked for logprobs. */
  logprobs?: Float32Array;
  /** (entries, MAX_LOGPROBS), most likely first, -1 where absent. */
  topIds?: Int32Array;
  topLogprobs?: Float32Array;
  failures: NativeFailure[];
  logits: { request: number; rows: number; vocab: number; values: Float32Array }[];
  /** Generations whose first token is in this event. */
  starts: { request: number; cachedTokens: number; queueMs: number }[];
  /** Of prompt tokens from `begin` on; alternatives as in `topIds`. */
  promptLogprobs: {
    request: number;
    begin: number;
    logprobs: Float32Array;
    topIds: Int32Array;
    topLogprobs: Float32Array;
  }[];
  /** Drafts of a request that the step checked, and those of them that are among its tokens. */
  drafts: { request: number; drafted: number; accepted: number }[];
  /** Drafts behind the last token of a masked request: its next masks may be those of all of them. */
  proposals: { request: number; tokens: Int32Array }[];
}

export interface NativeStats {
  freePages: number;
  cachedPages: number;
  heldPages: number;
  totalPages: number;
  running: number;
  waiting: number;
  steps: number;
  prefillTokens: number;
  decodeTokens: number;
  preemptions: number;
  prefixQueriedTokens: number;
  prefixHitTokens: number;
  draftChecks: number;
  draftedTokens: number;
  acceptedTokens: number;
  acceptedPerPosition: number[];
  plainSteps: number;
  verifySteps: number;
  draftPasses: number;
  plainMs: number;
  verifyMs: number;
  draftMs: number;
}

/** A loaded model. Calls after `dispose()` throw an error with code ERR_DISPOSED. */
export interface NativeModel {
  info(): NativeInfo;
  /** Starts the events; called once, before the first submit. While no request runs, the listener does not keep the process alive. */
  listen(onStep: (event: NativeStepEvent) => void): void;
  submit(request: NativeGenerateRequest): number;
  submitLogits(tokens: Int32Array, mtp: boolean): number;
  /**
   * What a masked request may sample as its token `position` (0 is the first): bit id % 32 of word id / 32; no words allow all.
   * Masks of tokens that are already out are ignored. Behind the first may come those of the following tokens, each for the
   * case that the proposed drafts before it come true; drafts whose masks are not there are not checked.
   */
  setMasks(request: number, position: number, masks: Int32Array): void;
  abort(request: number): void;
  stats(): NativeStats;
  /** Idempotent. Every running request ends with `aborted` before the promise resolves. */
  dispose(): Promise<void>;
}

export interface NativeLoad {
  promise: Promise<NativeModel>;
  /** Ends the load with code ERR_ABORTED. */
  cancel(): void;
}

export interface NativeAddon {
  readonly version: string;
  /** `onProgress(bytesDone, bytesTotal)` is called on the JavaScript thread, at most about 20 times a second. */
  load(path: string, options: NativeEngineOptions, onProgress: (done: number, total: number) => void): NativeLoad;
  /**
   * Loads this node's ranks and computes what the leader says, until the leader ends; rejects when the world fails. onReady is
   * called once, after the leader's first step.
   */
  follow(
    path: string,
    options: NativeEngineOptions,
    onProgress: (done: number, total: number) => void,
    onReady: (info: NativeInfo) => void,
  ): { promise: Promise<void>; cancel(): void };
  /** Reads config.json and tensor headers only. */
  inspect(path: string, tensorParallelSize: number, enableExpertParallel: boolean): Promise<NativeInfo>;
  devices(): { device: string; available: boolean; detail: string }[];
  /** Where a package holds the library of a device backend; to be said before any other call. */
  offerLibrary(file: string, path: string): void;
  /** What quantising the folder makes, as JSON text: a `QuantizePlan` of lib/quantize. */
  planQuantization(path: string, format: string): Promise<string>;
  /** Writes one shard of the plan to a new file; the result is JSON text, a `TensorError[]` of lib/quantize. */
  quantizeShard(
    job: { path: string; format: string; file: string; out: string; threads: number },
    onProgress: (sourceBytesDone: number) => void,
  ): { promise: Promise<string>; cancel(): void };
  /** 10^9 bytes/s of reading host memory once, all cores together; takes about a second. */
  memoryBandwidth(): Promise<number>;
  /** Runs off the JavaScript thread; options and result are JSON text. */
  bench(optionsJson: string, onLine: (line: string) => void): { promise: Promise<string>; cancel(): void };
}

/** Shape of every error thrown by the addon. */
export interface NativeError extends Error {
  code: string;
  hint: string;
}

const require = createRequire(import.meta.url);
const packageRoot = join(dirname(fileURLToPath(import.meta.url)), '..');

/** Packages that hold the library of a device backend: installed by name, never as a dependency. */
const backendPackages = [{ name: '@sigmoe/linux-x64-cuda', library: 'libsigmoe_cuda.so' }];

let loaded: { addon: NativeAddon; origin: AddonOrigin } | undefined;

/** The addon, loaded on the first call. */
export function native(): NativeAddon {
  return load().addon;
}

/** The addon's file, and why it is that one. */
export function addonOrigin(): AddonOrigin {
  return load().origin;
}

function load(): { addon: NativeAddon; origin: AddonOrigin } {
  if (loaded === undefined) {
    const { addon, origin } = loadAddon(packageRoot) as { addon: NativeAddon; origin: AddonOrigin };
    for (const { name, library } of backendPackages) {
      const folder = folderOf(name);
      if (folder !== undefined) addon.offerLibrary(library, join(folder, library));
    }
    loaded = { addon, origin };
  }
  return loaded;
}

function folderOf(packageName: string): string | undefined {
  try {
    return dirname(require.resolve(`${packageName}/package.json`));
  } catch {
    return undefined;
  }
}
