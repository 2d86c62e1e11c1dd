import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  AbortError,
  CheckpointError,
  DisposedError,
  InvalidArgumentError,
  inspect,
  type LoadOptions,
  Model,
  NotFoundError,
  OutOfMemoryError,
} from '../../lib/index.js';
import { Finish, type NativeEngineOptions, type NativeModel } from '../../lib/native.js';
import { FakeNative, settle } from '../helpers/fake_native.js';
import { folderWith, nano } from '../helpers/files.js';

/** The addon of these tests: a load that ends when the test says so. */
const addon = vi.hoisted(() => ({
  options: [] as unknown[],
  cancelled: 0,
  models: [] as FakeNative[],
  onLoad: undefined as ((report: (done: number, total: number) => void) => Promise<NativeModel>) | undefined,
}));

vi.mock('../../lib/native.js', async (original) => ({
  ...(await original<typeof import('../../lib/native.js')>()),
  native: () => ({
    version: '0.1.0',
    load(_: string, options: NativeEngineOptions, report: (done: number, total: number) => void) {
      addon.options.push(options);
      let reject: (error: Error) => void = () => {};
      const cancelled = new Promise<NativeModel>((_, no) => {
        reject = no;
      });
      const make = async () => {
        const model = new FakeNative();
        addon.models.push(model);
        return model;
      };
      return {
        promise: Promise.race([cancelled, addon.onLoad ? addon.onLoad(report) : make()]),
        cancel() {
          addon.cancelled += 1;
          reject(Object.assign(new Error('the load was cancelled'), { code: 'ERR_ABORTED', hint: '' }));
        },
      };
    },
    inspect: async () => new FakeNative().info(),
    devices: () => [],
  }),
}));

beforeEach(() => {
  addon.options = [];
  addon.models = [];
  addon.cancelled = 0;
  addon.onLoad = undefined;
});
afterEach(() => vi.restoreAllMocks());

const never = () => new Promise<NativeModel>(() => {});

describe('loading', () => {
  test('options reach the engine checked and complete', async () => {
    const model = await Model.load(nano, { threads: 2, compute: 'float32', mtp: true, maxModelLen: undefined });
    expect(addon.options).toEqual([
      {
        device: 'auto',
        kernels: 'auto',
        compute: 'float32',
        deterministic: false,
        kvCacheDtype: 'auto',
        prefillAttention: 'auto',
        threads: 2,
        tensorParallelSize: 1,
        enableExpertParallel: false,
        dataParallelSize: 1,
        firstDevice: 0,
        nodeRank: 0,
        nodeCount: 1,
        nodeAddress: '127.0.0.1',
        nodePort: 29500,
        nodeSecret: '',
        nodeAllowNoSecret: false,
        nodesOnThisMachine: 1,
        nodeJoinMs: 600_000,
        nodeSilenceMs: 30_000,
        maxModelLen: 0,
        maxNumSeqs: 32,
        maxWaiting: 1024,
        memoryUtilization: 0,
        prefixCache: true,
        maxBatchedTokens: 0,
        kvCacheTokens: 0,
        mtp: true,
        speculation: 'none',
        draft: '',
        maxDraft: 0,
        adaptiveDepth: true,
      },
    ]);
    expect(model.info).toMatchObject({
      path: nano,
      context: 64,
      device: { name: 'cpu', reason: 'asked for', kvCacheDtype: 'float32', prefillAttention: 'float32' },
      chatTemplate: 'tokenizer_config.json',
    });
  });

  test.each([0, 1, 700, 65_536])('a step of %i tokens reaches the engine as it is', async (maxBatchedTokens) => {
    await Model.load(nano, { maxBatchedTokens });
    expect(addon.options.at(-1)).toMatchObject({ maxBatchedTokens });
  });

  const speculation: [options: LoadOptions, native: object][] = [
    [{ draft: 'd' }, { speculation: 'auto', draft: 'd', maxDraft: 0 }],
    [{ speculative: {} }, { speculation: 'auto', draft: '' }],
    [{ speculative: false }, { speculation: 'none' }],
    [
      { speculative: { method: 'ngram', maxDepth: 3, adaptive: false } },
      { speculation: 'ngram', maxDraft: 3, adaptiveDepth: false },
    ],
  ];
  test.each(speculation)('%o asks the engine for %o', async (options, native) => {
    await Model.load(nano, options);
    expect(addon.options.at(-1)).toMatchObject(native);
  });

  const bad: [options: unknown, message: string][] = [
    [{ device: 'gpu' }, 'device: expected one of auto, cpu, cuda, ascend, ascend-twin, found "gpu"'],
    [{ kernels: 'sse' }, 'kernels'],
    [{ compute: 'fp16' }, 'compute'],
    [{ deterministic: 'yes' }, 'deterministic: expected true or false, found "yes"'],
    [{ kvCacheDtype: 'fp4' }, 'kvCacheDtype'],
    [{ prefillAttention: 'int8' }, 'prefillAttention: expected one of auto, bfloat16, fp8, found "int8"'],
    [{ threads: -1 }, 'threads: expected an integer from 0 to 1024, found -1'],
    [{ threads: Number.NaN }, 'threads'],
    [{ tensorParallelSize: 0 }, 'tensorParallelSize'],
    [{ dataParallelSize: 65 }, 'dataParallelSize: expected an integer from 1 to 64, found 65'],
    [{ enableExpertParallel: 1 }, 'enableExpertParallel: expected true or false'],
    [{ maxModelLen: 1.5 }, 'maxModelLen'],
    [{ maxNumSeqs: '4' }, 'maxNumSeqs'],
    [{ maxBatchedTokens: -1 }, 'maxBatchedTokens: expected an integer from 0 to 65536, found -1'],
    [{ maxBatchedTokens: 65_537 }, 'maxBatchedTokens: expected an integer from 0 to 65536, found 65537'],
    [{ mtp: 'yes' }, 'mtp: expected true or false'],
    [{ draft: 5 }, 'draft: expected the path of a draft folder'],
    [{ speculative: { maxDepth: 0 } }, 'speculative.maxDepth: expected an integer from 1 to 15, found 0'],
    [{ speculative: { adaptive: 1 } }, 'speculative.adaptive: expected true or false'],
    [{ onProgress: 5 }, 'onProgress: expected a function'],
    [{ signal: 5 }, 'signal'],
    [{ max_model_len: 5 }, 'unknown option "max_model_len"'],
    [[], 'expected an object'],
  ];
  test.each(bad)('%o is refused before anything is read', async (options, message) => {
    await expect(Model.load('/no/such/folder', options as LoadOptions)).rejects.toThrow(InvalidArgumentError);
    await expect(Model.load('/no/such/folder', options as LoadOptions)).rejects.toThrow(message);
  });

  test('paths', async () => {
    await expect(Model.load('/no/such/folder')).rejects.toThrow(NotFoundError);
    await expect(Model.load('')).rejects.toThrow(InvalidArgumentError);
    await expect(Model.load('a\0b')).rejects.toThrow(InvalidArgumentError);
    await expect(Model.load(5 as unknown as string)).rejects.toThrow(InvalidArgumentError);
  });

  test('abort: before, while it runs, and as it ends', async () => {
    await expect(Model.load(nano, { signal: AbortSignal.abort() })).rejects.toThrow(AbortError);
    addon.onLoad = never;
    const controller = new AbortController();
    const loading = Model.load(nano, { signal: controller.signal });
    while (addon.options.length === 0) await settle();
    controller.abort('enough');
    await expect(loading).rejects.toMatchObject({ name: 'AbortError', cause: 'enough' });
    expect(addon.cancelled).toBe(1);

    const late = new AbortController();
    const model = new FakeNative();
    addon.onLoad = async () => {
      late.abort();
      return model;
    };
    await expect(Model.load(nano, { signal: late.signal })).rejects.toThrow(AbortError);
  });

  test('progress is reported; a callback that throws ends the load with its error', async () => {
    const seen: unknown[] = [];
    addon.onLoad = async (report) => {
      report(1, 2);
      report(2, 2);
      return new FakeNative();
    };
    await Model.load(nano, { onProgress: (progress) => seen.push(progress) });
    expect(seen).toEqual([
      { bytesDone: 1, bytesTotal: 2 },
      { bytesDone: 2, bytesTotal: 2 },
    ]);
    addon.onLoad = async (report) => {
      await settle();
      report(1, 2);
      return never();
    };
    const onProgress = () => {
      throw new RangeError('mine');
    };
    await expect(Model.load(nano, { onProgress })).rejects.toThrow(new RangeError('mine'));
  });

  test('errors of the engine keep their kind', async () => {
    addon.onLoad = async () => {
      throw Object.assign(new Error('weights: asked 9 GB, free 2 GB'), { code: 'ERR_OUT_OF_MEMORY', hint: 'lower it' });
    };
    await expect(Model.load(nano)).rejects.toThrow(OutOfMemoryError);
  });

  test('generation_config.json: defaults, do_sample, and values that are none', async () => {
    const { readFileSync } = await import('node:fs');
    const tokenizer = readFileSync(`${nano}/tokenizer.json`, 'utf8');
    const load = (config: object) => Model.load(folderWith({ 'tokenizer.json': tokenizer, 'generation_config.json': config }));
    const sampled = await load({ temperature: 0.6, top_p: 0.95, top_k: 20, repetition_penalty: 1.05, eos_token_id: [3, 4] });
    sampled.generate({ prompt: [1], topK: 5 });
    await settle();
    const submitted = addon.models[0]?.submitted[0];
    expect(submitted).toMatchObject({ temperature: 0.6, topP: 0.95, topK: 5, minP: 0, repetitionPenalty: 1.05 });
    expect([...(submitted?.stopIds ?? [])].sort()).toEqual([3, 4, 6143]);

    const greedy = await load({ do_sample: false, temperature: 0.6 });
    greedy.generate({ prompt: [1] });
    greedy.generate({ prompt: [1], temperature: 0.5 });
    await settle();
    expect(addon.models[1]?.submitted.map((request) => request.temperature)).toEqual([0, 0.5]);
    await expect(load({ top_p: 7 })).rejects.toThrow(CheckpointError);
    await expect(load({ top_p: 7 })).rejects.toThrow('generation_config.json: top_p');
  });

  test('inspect needs no tokenizer', async () => {
    expect(await inspect(nano)).toMatchObject({ path: nano, vocabSize: 6144, chatTemplate: 'tokenizer_config.json' });
    expect(await inspect(folderWith({}))).toMatchObject({ chatTemplate: 'built-in' });
  });
});

describe('a loaded model', () => {
  test('batches keep order, bound what is in flight, and report progress', async () => {
    const model = await Model.load(nano);
    const [fake] = addon.models as [FakeNative];
    const seen: unknown[] = [];
    const requests = Array.from({ length: 9 }, (_, i) => ({ prompt: [i + 1], stop: [] }));
    const batch = model.generateBatch(requests, { onProgress: (progress) => seen.push(progress) });
    await settle();
    expect(fake.submitted.length).toBe(4);
    for (let request = 9; request >= 1; request--) {
      while (fake.submitted.length < Math.min(9, 13 - request)) await settle();
      const next = 10 - request;
      fake.step({ request: next, token: 32 + next, finish: Finish.length });
      await settle();
    }
    const results = await batch;
    expect(results.map((result) => result.tokens[0])).toEqual([33, 34, 35, 36, 37, 38, 39, 40, 41]);
    expect(seen.at(-1)).toEqual({ done: 9, total: 9, completionTokens: 9 });
  });

  test('the first error of a batch ends the rest; so does its signal', async () => {
    const model = await Model.load(nano);
    const [fake] = addon.models as [FakeNative];
    await expect(model.generateBatch([{ prompt: [1] }, { prompt: [] }])).rejects.toThrow(InvalidArgumentError);
    expect(fake.aborted).toEqual([1]);
    const controller = new AbortController();
    const batch = model.generateBatch([{ prompt: [1] }, { prompt: [2] }], { signal: controller.signal });
    await settle();
    controller.abort();
    await expect(batch).rejects.toThrow(AbortError);
    expect(fake.aborted).toEqual([1, 2, 3]);
    await expect(model.generateBatch([], { signal: AbortSignal.abort() })).rejects.toThrow(AbortError);
    expect(await model.generateBatch([])).toEqual([]);
  });

  test('logits', async () => {
    const model = await Model.load(nano);
    const [fake] = addon.models as [FakeNative];
    const logits = model.logits([1, 2]);
    await settle();
    fake.step({ request: 1, logits: Float32Array.of(1, 2), finish: Finish.stop });
    expect(await logits).toEqual(Float32Array.of(1, 2));
    const controller = new AbortController();
    const aborted = model.logits([1, 2], { signal: controller.signal });
    controller.abort();
    await expect(aborted).rejects.toThrow(AbortError);
    expect(fake.aborted).toEqual([2]);
    await expect(model.logits([])).rejects.toThrow(InvalidArgumentError);
    await expect(model.logits([9999])).rejects.toThrow(InvalidArgumentError);
    await expect(model.logits([1], { mpt: true } as object)).rejects.toThrow('unknown option "mpt"');
  });

  test('dispose ends what runs, is idempotent, and later use throws', async () => {
    const model = await Model.load(nano);
    const generation = model.generate({ prompt: [1] });
    const logits = model.logits([1]);
    await settle();
    const disposing = model.dispose();
    expect(model.dispose()).toBe(disposing);
    await expect(generation.result).rejects.toThrow(DisposedError);
    await expect(logits).rejects.toThrow(DisposedError);
    await disposing;
    await expect(model.generate({ prompt: [1] }).result).rejects.toThrow(DisposedError);
    await expect(model.logits([1])).rejects.toThrow(DisposedError);
    await expect(model.generateBatch([{ prompt: [1] }])).rejects.toThrow(DisposedError);
    expect(() => model.stats()).toThrow(DisposedError);
  });

  test('two models do not hear each other', async () => {
    const [one, two] = [await Model.load(nano), await Model.load(nano)];
    const [a, b] = [one.generate({ prompt: [1] }), two.generate({ prompt: [1] })];
    await settle();
    addon.models[1]?.step({ request: 1, token: 33, finish: Finish.length });
    expect((await b.result).text).toBe('B');
    addon.models[0]?.step({ request: 1, token: 32, finish: Finish.length });
    expect((await a.result).text).toBe('A');
  });
});
