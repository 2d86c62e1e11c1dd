/** A model without an engine: the test says what each step produces, as csrc/binding would. */
import { Dispatcher } from '../../lib/dispatcher.js';
import type { GenerationContext } from '../../lib/generate.js';
import { Grammars } from '../../lib/grammar/matcher.js';
import {
  Finish,
  MAX_LOGPROBS,
  type NativeFailure,
  type NativeGenerateRequest,
  type NativeInfo,
  type NativeModel,
  type NativeStats,
  type NativeStepEvent,
} from '../../lib/native.js';
import type { Tokenizer } from '../../lib/tokenizer.js';

export interface Entry {
  request: number;
  token?: number;
  finish?: number;
  logprob?: number;
  top?: [id: number, logprob: number][];
  failure?: Omit<NativeFailure, 'request'>;
  logits?: Float32Array;
  /** Drafts of the request that this step checked. */
  checked?: { drafted: number; accepted: number };
}

export class FakeNative implements NativeModel {
  readonly submitted: NativeGenerateRequest[] = [];
  readonly aborted: number[] = [];
  readonly masks: { request: number; position: number; masks: Int32Array }[] = [];
  /** Thrown by the next submit. */
  refuse: Error | undefined;
  disposed = false;
  private onStep: (event: NativeStepEvent) => void = () => {};
  private readonly running = new Set<number>();
  private next = 1;

  listen(onStep: (event: NativeStepEvent) => void): void {
    this.onStep = onStep;
  }

  submit(request: NativeGenerateRequest): number {
    if (this.refuse !== undefined) throw this.refuse;
    this.submitted.push(request);
    return this.begin();
  }

  submitLogits(): number {
    return this.begin();
  }

  setMasks(request: number, position: number, masks: Int32Array): void {
    this.masks.push({ request, position, masks });
  }

  abort(request: number): void {
    this.aborted.push(request);
  }

  /** One engine step. */
  step(...entries: Entry[]): void {
    const n = entries.length;
    const event: NativeStepEvent = {
      requests: Float64Array.from(entries, (entry) => entry.request),
      tokens: Int32Array.from(entries, (entry) => entry.token ?? -1),
      finish: Uint8Array.from(entries, (entry) => entry.finish ?? Finish.none),
      failures: entries.flatMap(({ request, failure }) => (failure ? [{ request, ...failure }] : [])),
      logits: entries.flatMap(({ request, logits }) =>
        logits ? [{ request, rows: 1, vocab: logits.length, values: logits }] : [],
      ),
      starts: [],
      promptLogprobs: [],
      proposals: [],
      drafts: entries.flatMap(({ request, checked }) => (checked ? [{ request, ...checked }] : [])),
    };
    if (entries.some((entry) => entry.top)) {
      event.logprobs = Float32Array.from(entries, (entry) => entry.logprob ?? Number.NaN);
      event.topIds = new Int32Array(n * MAX_LOGPROBS).fill(-1);
      event.topLogprobs = new Float32Array(n * MAX_LOGPROBS);
      for (const [i, { top = [] }] of entries.entries()) {
        for (const [k, [id, logprob]] of top.entries()) {
          event.topIds[i * MAX_LOGPROBS + k] = id;
          event.topLogprobs[i * MAX_LOGPROBS + k] = logprob;
        }
      }
    }
    for (const { request, finish } of entries) if (finish) this.running.delete(request);
    this.onStep(event);
  }

  async dispose(): Promise<void> {
    this.disposed = true;
    await Promise.resolve();
    const entries = [...this.running].map((request) => ({ request, finish: Finish.aborted }));
    if (entries.length > 0) this.step(...entries);
  }

  stats(): NativeStats {
    return {
      freePages: 16,
      cachedPages: 0,
      heldPages: 0,
      totalPages: 16,
      running: this.running.size,
      waiting: 0,
      steps: 0,
      prefillTokens: 0,
      decodeTokens: 0,
      preemptions: 0,
      prefixQueriedTokens: 0,
      prefixHitTokens: 0,
      draftChecks: 0,
      draftedTokens: 0,
      acceptedTokens: 0,
      acceptedPerPosition: [],
      plainSteps: 0,
      verifySteps: 0,
      draftPasses: 0,
      plainMs: 0,
      verifyMs: 0,
      draftMs: 0,
    };
  }

  info(): NativeInfo {
    const names = ['hiddenSize', 'layers', 'denseLayers', 'mtpLayers', 'heads', 'kvHeads', 'headDim', 'experts'] as const;
    const counts = Object.fromEntries(names.map((name) => [name, 1])) as Record<(typeof names)[number], number>;
    return {
      ...counts,
      architecture: 'BailingMoeV2ForCausalLM',
      device: 'cpu',
      deviceName: 'a fake',
      deviceReason: 'asked for',
      kernels: 'reference',
      compute: 'float32',
      kvCacheDtype: 'float32',
      prefillAttention: 'float32',
      weightFormat: 'bf16',
      context: 64,
      vocabSize: 6144,
      activeExperts: 1,
      sharedExperts: 1,
      parameters: 10,
      activeParameters: 5,
      parts: [],
      checkpointBytes: 0,
      weightBytes: 0,
      kvBytesPerToken: 0,
      kvBytes: 0,
      workspaceBytes: 0,
      kvCacheTokens: 64,
      threads: 1,
      tensorParallelSize: 1,
      dataParallelSize: 1,
      ranks: [],
      maxNumSeqs: 2,
      maxBatchedTokens: 8,
      speculation: 'none',
      maxDraft: 0,
      eosIds: [6143],
    };
  }

  private begin(): number {
    this.running.add(this.next);
    return this.next++;
  }
}

/** What a generation needs, over a fake. */
export function contextOver(fake: FakeNative, tokenizer: Tokenizer): GenerationContext {
  const info = fake.info();
  return {
    tokenizer,
    dispatcher: new Dispatcher(fake),
    grammars: new Grammars({ tokenizer, vocabSize: info.vocabSize, stopIds: tokenizer.stopIds }),
    context: info.context,
    vocabSize: info.vocabSize,
    defaults: { temperature: 1, topP: 1, topK: 0, minP: 0, repetitionPenalty: 1 },
    stopIds: tokenizer.stopIds,
    isDisposed: () => fake.disposed,
  };
}

/** Lets promises that are ready run on. */
export const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
