/** A loaded model: what a caller holds. Checks arguments, then hands work to the engine through native.ts. */
import { join } from 'node:path';
import { checkCallback, checkFields, checkIds, checkPromptLength, checkSignal } from './checks.js';
import { Dispatcher } from './dispatcher.js';
import { AbortError, type DeviceError, DisposedError, InvalidArgumentError, toEngineError } from './errors.js';
import { readOptionalJson } from './folder.js';
import { Generation, type GenerationContext } from './generate.js';
import { Grammars } from './grammar/matcher.js';
import { describe } from './inspect.js';
import { readLoadOptions } from './load_options.js';
import { checkPath, folderOf, loadAborted } from './model_source.js';
import type { NativeModel } from './native.js';
import { addon, guarded, runCancellable } from './native_work.js';
import { readSamplingDefaults, type SamplingDefaults } from './request_options.js';
import { Tokenizer } from './tokenizer.js';
import type {
  BatchOptions,
  GenerateRequest,
  GenerateResult,
  LoadOptions,
  LogitsOptions,
  ModelInfo,
  ModelStats,
} from './types.js';

/** Requests of a batch handed to the engine ahead of those it runs. */
const BATCH_AHEAD = 2;

export class Model {
  readonly info: ModelInfo;
  readonly tokenizer: Tokenizer;
  private readonly context: GenerationContext;
  private readonly dispatcher: Dispatcher;
  private disposing: Promise<void> | undefined;

  /**
   * Loads a model folder: config.json, tokenizer.json, safetensors; or a model of a hub by its id, out of the cache. Only
   * `download: true` makes a connection, and only for what is not there. Ends with AbortError when `signal` is aborted.
   *
   *     await using model = await Model.load('models/nano');
   *     await using model = await Model.load('MedAIBase/AntAngelMed-FP8', { download: true });
   */
  static async load(model: string, options: LoadOptions = {}): Promise<Model> {
    checkPath(model);
    const nativeOptions = readLoadOptions(options);
    const { signal, onProgress } = options;
    if (signal?.aborted) throw loadAborted(signal);
    const path = await folderOf(model, options);
    // A draft is another model: the revision is not of it.
    if (options.draft !== undefined) nativeOptions.draft = await folderOf(options.draft, { ...options, revision: undefined });
    const tokenizer = await Tokenizer.load(path, { chatTemplate: options.chatTemplate });
    const generation = await readOptionalJson(path, 'generation_config.json');
    const defaults = readSamplingDefaults(join(path, 'generation_config.json'), generation);
    if (signal?.aborted) throw loadAborted(signal);
    const loaded = await runCancellable(
      (cancel) => {
        const report = (bytesDone: number, bytesTotal: number) => {
          try {
            onProgress?.({ bytesDone, bytesTotal });
          } catch (error) {
            cancel(error);
          }
        };
        const load = addon().load(path, nativeOptions, report);
        // The text side gets ready on this thread while the weights are read on others.
        const warm = tokenizer.warmUp();
        return { promise: Promise.all([load.promise, warm]).then(([loaded]) => loaded), cancel: () => load.cancel() };
      },
      signal,
      loadAborted,
    );
    if (!signal?.aborted) return new Model(path, loaded, tokenizer, defaults);
    await loaded.dispose();
    throw loadAborted(signal);
  }

  private constructor(
    path: string,
    private readonly native: NativeModel,
    tokenizer: Tokenizer,
    defaults: SamplingDefaults,
  ) {
    const info = native.info();
    const stopIds = [...new Set([...tokenizer.stopIds, ...info.eosIds])];
    this.info = describe(path, info, tokenizer.chatTemplateSource);
    this.tokenizer = tokenizer;
    this.dispatcher = new Dispatcher(native);
    this.context = {
      tokenizer,
      dispatcher: this.dispatcher,
      grammars: new Grammars({ tokenizer, vocabSize: info.vocabSize, stopIds }),
      context: info.context,
      vocabSize: info.vocabSize,
      defaults,
      stopIds,
      isDisposed: () => this.disposed,
    };
  }

  get disposed(): boolean {
    return this.disposing !== undefined;
  }

  /** The device error that broke the model: dispose it. Undefined while it works. */
  get failure(): DeviceError | undefined {
    return this.dispatcher.failure;
  }

  /**
   * Starts a generation, which runs whether or not it is read. Errors, also those of the request, come from `result` and
   * from the loop.
   *
   *     for await (const chunk of model.generate({ prompt: 'Fever is' })) process.stdout.write(chunk.text);
   *     const { text, usage } = await model.generate({ messages, temperature: 0 }).result;
   */
  generate(request: GenerateRequest): Generation {
    return new Generation(this.context, request);
  }

  /** Runs many requests, as many at once as the engine takes; results in the order of requests. The first error ends all. */
  async generateBatch(requests: readonly GenerateRequest[], options: BatchOptions = {}): Promise<GenerateResult[]> {
    checkFields('generateBatch', options, ['onProgress', 'signal']);
    checkCallback('onProgress', options.onProgress);
    if (!Array.isArray(requests)) throw new InvalidArgumentError('requests', 'requests: expected an array of requests');
    const signal = checkSignal(options.signal);
    const results: GenerateResult[] = [];
    const running = new Set<Generation>();
    let next = 0;
    let done = 0;
    let completionTokens = 0;
    let stopped = false;
    const stopAll = () => {
      stopped = true;
      for (const generation of running) generation.stop();
    };
    const lane = async () => {
      while (!stopped && next < requests.length) {
        const index = next++;
        const generation = this.generate(requests[index] as GenerateRequest);
        running.add(generation);
        const result = await generation.result;
        running.delete(generation);
        if (stopped) return;
        results[index] = result;
        completionTokens += result.usage.completionTokens;
        options.onProgress?.({ done: ++done, total: requests.length, completionTokens });
      }
    };
    signal?.addEventListener('abort', stopAll);
    try {
      const lanes = Math.min(requests.length, this.info.limits.maxNumSeqs * BATCH_AHEAD);
      if (!signal?.aborted) await Promise.all(Array.from({ length: lanes }, lane));
    } finally {
      stopAll();
      signal?.removeEventListener('abort', stopAll);
    }
    if (!signal?.aborted) return results;
    throw new AbortError(`the batch was aborted after ${done} of ${requests.length} requests`, results, {
      cause: signal.reason,
    });
  }

  /** Teacher-forced logits as Float32Array [T, vocab], row-major: row t scores the token after position t. */
  async logits(ids: readonly number[] | Int32Array, options: LogitsOptions = {}): Promise<Float32Array> {
    checkFields('logits', options, ['mtp', 'signal']);
    const { mtp = false } = options;
    const signal = checkSignal(options.signal);
    if (typeof mtp !== 'boolean') throw new InvalidArgumentError('mtp', 'mtp: expected true or false');
    this.checkOpen();
    const tokens = checkIds('ids', ids, this.context.vocabSize);
    checkPromptLength('ids', tokens, this.context.context, 0);
    const aborted = () => new AbortError('the logits were aborted', undefined, { cause: signal?.reason });
    if (signal?.aborted) throw aborted();
    let onAbort = () => {};
    try {
      return await new Promise((resolve, reject) => {
        let values: Float32Array = new Float32Array(0);
        const request = this.dispatcher.submitLogits(tokens, mtp, {
          logits: (all) => {
            values = all;
          },
          finished: () => resolve(values),
          failed: reject,
        });
        onAbort = () => {
          this.dispatcher.drop(request);
          reject(aborted());
        };
        signal?.addEventListener('abort', onAbort, { once: true });
      });
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  stats(): ModelStats {
    this.checkOpen();
    return guarded(() => this.native.stats());
  }

  /** Ends what runs, each with a DisposedError, and frees the model's memory. Further calls wait for the same end. */
  dispose(): Promise<void> {
    this.disposing ??= this.native.dispose().then(
      () => {
        this.dispatcher.close();
        return this.context.grammars.close();
      },
      (error: unknown) => {
        throw toEngineError(error);
      },
    );
    return this.disposing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  private checkOpen(): void {
    if (this.disposed) throw new DisposedError();
  }
}
