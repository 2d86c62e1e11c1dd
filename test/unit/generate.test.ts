import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { LING_TEMPLATE } from '../../lib/chat/ling-template.js';
import { Generation, type GenerationContext } from '../../lib/generate.js';
import {
  AbortError,
  type Chunk,
  DeviceError,
  DisposedError,
  type GenerateRequest,
  InvalidArgumentError,
  OutOfMemoryError,
  Tokenizer,
} from '../../lib/index.js';
import { Finish } from '../../lib/native.js';
import { contextOver, FakeNative, settle } from '../helpers/fake_native.js';
import { nano } from '../helpers/files.js';

let tokenizer: Tokenizer;
let thinking: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(nano);
  thinking = await Tokenizer.load(nano, { chatTemplate: `${LING_TEMPLATE}{{- '<think>\\n' -}}` });
});

let fake: FakeNative;
let context: GenerationContext;
beforeEach(() => {
  fake = new FakeNative();
  context = contextOver(fake, tokenizer);
});

const start = async (request: GenerateRequest): Promise<Generation> => {
  const generation = new Generation(context, request);
  await settle();
  return generation;
};
const encode = (text: string): number[] => tokenizer.encode(text, { special: false });

/** Steps of one token each, the last with a finish. */
function say(request: number, text: string, finish: number = Finish.stop): void {
  const ids = encode(text);
  for (const [i, token] of ids.entries()) fake.step({ request, token, finish: i === ids.length - 1 ? finish : Finish.none });
}

async function collect(generation: Generation): Promise<Chunk[]> {
  const chunks: Chunk[] = [];
  for await (const chunk of generation) chunks.push(chunk);
  return chunks;
}

describe('speculation', () => {
  test('several tokens of one step come in order, in one chunk, and are counted', async () => {
    const generation = await start({ prompt: 'What is asthma?', maxTokens: 9 });
    const [a = 0, b = 0, c = 0] = encode('one two three');
    fake.step({ request: 1, token: a });
    fake.step({ request: 1, token: b, checked: { drafted: 3, accepted: 1 } }, { request: 1, token: c });
    fake.step({ request: 1, token: a, finish: Finish.length, checked: { drafted: 2, accepted: 0 } });
    const { tokens, usage } = await generation.result;
    expect(tokens).toEqual([a, b, c, a]);
    expect(usage).toMatchObject({ completionTokens: 4, draftedTokens: 5, acceptedTokens: 1 });
  });

  test('a stop text among accepted drafts ends the output there', async () => {
    const generation = await start({ prompt: 'What is asthma?', stop: ' two' });
    const [one = 0, two = 0, three = 0] = encode('one two three');
    fake.step({ request: 1, token: one }, { request: 1, token: two }, { request: 1, token: three });
    const { text, tokens, finishReason } = await generation.result;
    expect({ text, tokens, finishReason }).toEqual({ text: 'one', tokens: [one, two], finishReason: 'stop' });
  });

  test.each([
    [undefined, -1],
    [false, 0],
    [{}, -1],
    [{ maxDepth: 3 }, 3],
  ] as const)('speculative %o reaches the engine as %i', async (speculative, maxDraft) => {
    await start({ prompt: 'a', speculative });
    expect(fake.submitted[0]).toMatchObject({ maxDraft });
  });

  test('and is checked', async () => {
    for (const speculative of [{ maxDepth: 16 }, { depth: 1 }, true] as unknown as { maxDepth: number }[])
      await expect((await start({ prompt: 'a', speculative })).result).rejects.toThrow(InvalidArgumentError);
  });
});

describe('a generation', () => {
  test('result without iterating', async () => {
    const generation = await start({ prompt: 'What is asthma?', maxTokens: 9, seed: 5 });
    expect(fake.submitted[0]).toMatchObject({ maxTokens: 9, seed: 5n, temperature: 1, logprobs: -1 });
    expect([...(fake.submitted[0]?.prompt ?? [])]).toEqual(tokenizer.encode('What is asthma?'));
    say(1, 'A disease 头痛', Finish.length);
    const result = await generation.result;
    expect(result).toMatchObject({ text: 'A disease 头痛', reasoning: '', finishReason: 'length', stopReason: null, seed: 5n });
    const completionTokens = encode('A disease 头痛').length;
    expect(result.usage).toMatchObject({ completionTokens, totalTokens: completionTokens + result.usage.promptTokens });
    expect(result.timings.totalMs).toBeGreaterThanOrEqual(result.timings.ttftMs);
    expect(fake.aborted).toEqual([]);
  });

  test('chunks add up to the result, and a slow reader gets them joined', async () => {
    const generation = await start({ prompt: [1, 2, 3] });
    const reading = collect(generation);
    const ids = encode('one two three');
    for (const token of ids.slice(0, 2)) {
      fake.step({ request: 1, token });
      await settle();
    }
    for (const token of ids.slice(2)) fake.step({ request: 1, token });
    fake.step({ request: 1, finish: Finish.length });
    const chunks = await reading;
    expect(chunks.length).toBe(3);
    expect(chunks.map((chunk) => chunk.text).join('')).toBe('one two three');
    expect(chunks.flatMap((chunk) => chunk.tokens)).toEqual((await generation.result).tokens);
    await expect(async () => collect(generation)).rejects.toThrow('iterated once');
  });

  test('readers that ask twice at once both get an answer', async () => {
    const reader = (await start({ prompt: [1] }))[Symbol.asyncIterator]();
    const [first, second] = [reader.next(), reader.next()];
    fake.step({ request: 1, token: 32, finish: Finish.stop });
    expect([(await first).done, (await second).done].sort()).toEqual([false, true]);
  });

  test('a stop token ends the text and is named', async () => {
    const generation = await start({ prompt: [1], stopTokenIds: [13] });
    expect([...(fake.submitted[0]?.stopIds ?? [])].sort()).toEqual([13, 6138, 6143]);
    fake.step({ request: 1, token: 32 }, { request: 1, token: 13, finish: Finish.stop });
    expect(await generation.result).toMatchObject({ text: 'A', tokens: [32, 13], finishReason: 'stop', stopReason: 13 });
  });

  test('ignoreEos takes no stop token from the model', async () => {
    await start({ prompt: [1], ignoreEos: true, stopTokenIds: [7] });
    expect([...(fake.submitted[0]?.stopIds ?? [])]).toEqual([7]);
  });

  test('a stop string ends the request at once and later tokens are not its output', async () => {
    const generation = await start({ prompt: [1], stop: ['. B'] });
    const ids = encode('A. Bee');
    fake.step(...ids.map((token) => ({ request: 1, token })));
    expect(fake.aborted).toEqual([1]);
    const result = await generation.result;
    expect(result).toMatchObject({ text: 'A', finishReason: 'stop', stopReason: '. B' });
    fake.step({ request: 1, token: 40, finish: Finish.aborted });
    expect(await generation.result).toBe(result);
  });

  test('includeStopInOutput, minTokens', async () => {
    const kept = await start({ prompt: [1], stop: 'two', includeStopInOutput: true });
    say(1, 'one two three');
    expect((await kept.result).text).toBe('one two');
    const late = await start({ prompt: [1], stop: 'a', minTokens: 3 });
    for (const token of encode('aaa').flatMap(() => encode('a'))) fake.step({ request: 2, token });
    const result = await late.result.catch(() => undefined);
    expect(result?.tokens.length).toBe(3);
    expect(result?.text).toBe('aa');
  });

  test('a stop string that never comes holds nothing back at the end', async () => {
    const generation = await start({ prompt: [1], stop: 'Hello world' });
    say(1, 'Hello wor', Finish.length);
    expect((await generation.result).text).toBe('Hello wor');
  });

  test('thinking is told apart, with the tag in the output or in the prompt', async () => {
    const inOutput = await start({ prompt: [1] });
    say(1, '<think>\nbecause\n</think>\n\nRest.');
    expect(await inOutput.result).toMatchObject({ text: 'Rest.', reasoning: 'because' });
    context = contextOver(fake, thinking);
    const inPrompt = await start({ messages: [{ role: 'user', content: 'Hi' }] });
    say(2, 'because\n</think>\n\nRest.');
    const result = await inPrompt.result;
    expect(result).toMatchObject({ text: 'Rest.', reasoning: 'because' });
    expect(result.usage.reasoningTokens).toBe(encode('because\n</think>').length);
  });

  test('log-probabilities', async () => {
    const generation = await start({ prompt: [1], logprobs: 2 });
    fake.step({
      request: 1,
      token: 32,
      logprob: -0.5,
      top: [
        [32, -0.5],
        [33, -1],
        [34, -2],
      ],
      finish: Finish.length,
    });
    const { logprobs } = await generation.result;
    expect(logprobs).toEqual([
      {
        id: 32,
        bytes: new TextEncoder().encode('A'),
        logprob: -0.5,
        top: [
          { id: 32, bytes: new TextEncoder().encode('A'), logprob: -0.5 },
          { id: 33, bytes: new TextEncoder().encode('B'), logprob: -1 },
        ],
      },
    ]);
  });

  test('two requests in one step', async () => {
    const [a, b] = [await start({ prompt: [1] }), await start({ prompt: [2] })];
    fake.step({ request: 2, token: 33, finish: Finish.stop }, { request: 1, token: 32 });
    fake.step({ request: 1, token: 34, finish: Finish.length });
    expect((await a.result).text).toBe('AC');
    expect((await b.result).text).toBe('B');
  });
});

describe('ends of a generation', () => {
  test('signal before: nothing is submitted', async () => {
    const generation = await start({ prompt: [1], signal: AbortSignal.abort('no') });
    await expect(generation.result).rejects.toMatchObject({ name: 'AbortError', cause: 'no' });
    await expect(collect(generation)).rejects.toThrow(AbortError);
    expect(fake.submitted.length).toBe(0);
  });

  test('signal during: rejects with what there was, after the chunks', async () => {
    const controller = new AbortController();
    const generation = await start({ prompt: [1], signal: controller.signal });
    fake.step({ request: 1, token: 32 });
    controller.abort();
    const reader = generation[Symbol.asyncIterator]();
    expect(await reader.next()).toMatchObject({ value: { text: 'A' } });
    await expect(reader.next()).rejects.toThrow(AbortError);
    await expect(generation.result).rejects.toMatchObject({ partial: { text: 'A', tokens: [32], finishReason: 'abort' } });
    expect(fake.aborted).toEqual([1]);
    fake.step({ request: 1, finish: Finish.aborted });
  });

  test('signal while a long prompt is encoded', async () => {
    const controller = new AbortController();
    const generation = new Generation(context, { prompt: 'long '.repeat(10_000), signal: controller.signal });
    controller.abort();
    await expect(generation.result).rejects.toThrow(AbortError);
  });

  test('signal after: the result stays', async () => {
    const controller = new AbortController();
    const generation = await start({ prompt: [1], signal: controller.signal });
    say(1, 'A');
    controller.abort();
    expect((await generation.result).text).toBe('A');
    expect(fake.aborted).toEqual([]);
  });

  test('leaving the loop aborts and resolves', async () => {
    const generation = await start({ prompt: [1] });
    fake.step({ request: 1, token: 32 });
    for await (const chunk of generation) {
      expect(chunk.text).toBe('A');
      break;
    }
    expect(await generation.result).toMatchObject({ text: 'A', finishReason: 'abort', stopReason: null });
    expect(fake.aborted).toEqual([1]);
  });

  test('stop() before the prompt is encoded', async () => {
    const generation = new Generation(context, { prompt: [1] });
    generation.stop();
    expect(await generation.result).toMatchObject({ text: '', tokens: [], finishReason: 'abort' });
    await settle();
    expect(await collect(generation)).toEqual([]);
  });

  test('errors of the engine: in submit and while it runs', async () => {
    const failure = { code: 'ERR_DEVICE', message: 'the device is lost', hint: 'load again' };
    const generation = await start({ prompt: [1] });
    fake.step({ request: 1, token: 32 }, { request: 1, finish: Finish.error, failure });
    await expect(generation.result).rejects.toThrow(DeviceError);
    await expect(collect(generation)).rejects.toThrow('the device is lost');
    expect(context.dispatcher.failure?.message).toBe('the device is lost');
    fake.refuse = Object.assign(new Error('kv cache: asked 9 pages, free 2'), { code: 'ERR_OUT_OF_MEMORY', hint: '' });
    await expect((await start({ prompt: [1] })).result).rejects.toThrow(OutOfMemoryError);
  });

  test('dispose while it runs, and use after dispose', async () => {
    const generation = await start({ prompt: [1] });
    fake.step({ request: 1, token: 32 });
    await fake.dispose();
    await expect(generation.result).rejects.toThrow(DisposedError);
    await expect((await start({ prompt: [1] })).result).rejects.toThrow(DisposedError);
  });

  test('nobody watches a failing generation: no unhandled rejection', async () => {
    await start({ prompt: [] });
    await settle();
  });
});

describe('requests that no model could run', () => {
  const ask = { prompt: 'Hi' };
  const cases: [name: string, request: unknown, message: string][] = [
    ['no prompt', {}, 'neither'],
    ['two prompts', { prompt: 'a', messages: [] }, 'both'],
    ['tools without messages', { prompt: 'a', tools: [] }, 'tools goes with messages'],
    ['not an object', null, 'expected an object'],
    ['empty text', { prompt: '' }, 'at least one token'],
    ['empty ids', { prompt: [] }, 'at least one token'],
    ['ids out of range', { prompt: [0, 6144] }, 'prompt[1]: expected a token id from 0 to 6143, found 6144'],
    ['negative ids', { prompt: [-1] }, 'prompt[0]'],
    ['fractional ids', { prompt: [0.5] }, 'prompt[0]'],
    ['a prompt that is no prompt', { prompt: {} }, 'prompt: expected an array'],
    ['longer than the context', { prompt: new Int32Array(64) }, '64 tokens, where the context of 64 leaves room for 63'],
    ['temperature NaN', { ...ask, temperature: Number.NaN }, 'temperature: expected a number from 0 to 100, found NaN'],
    ['temperature negative', { ...ask, temperature: -1 }, 'temperature'],
    ['temperature infinite', { ...ask, temperature: Number.POSITIVE_INFINITY }, 'temperature'],
    ['temperature text', { ...ask, temperature: '1' }, 'found "1"'],
    ['topP zero', { ...ask, topP: 0 }, 'topP: expected a number above 0, at most 1'],
    ['topP over one', { ...ask, topP: 1.1 }, 'topP'],
    ['topK fraction', { ...ask, topK: 1.5 }, 'topK: expected an integer'],
    ['minP', { ...ask, minP: 2 }, 'minP'],
    ['repetitionPenalty', { ...ask, repetitionPenalty: 0 }, 'repetitionPenalty'],
    ['presencePenalty', { ...ask, presencePenalty: 3 }, 'presencePenalty'],
    ['frequencyPenalty', { ...ask, frequencyPenalty: Number.NaN }, 'frequencyPenalty'],
    ['logitBias id', { ...ask, logitBias: { x: 1 } }, 'logitBias[0]: expected a token id'],
    ['logitBias value', { ...ask, logitBias: { 5: Number.NaN } }, 'logitBias[5]'],
    ['seed', { ...ask, seed: -1 }, 'seed'],
    ['seed too large', { ...ask, seed: 1n << 64n }, 'seed'],
    ['maxTokens', { ...ask, maxTokens: 0 }, 'maxTokens'],
    ['minTokens above maxTokens', { ...ask, maxTokens: 2, minTokens: 3 }, 'minTokens: expected at most maxTokens (2)'],
    ['empty stop', { ...ask, stop: [''] }, 'stop'],
    ['stop that is no text', { ...ask, stop: 5 }, 'stop'],
    ['too many stops', { ...ask, stop: Array(65).fill('x') }, 'at most 64'],
    ['stopTokenIds', { ...ask, stopTokenIds: [7000] }, 'stopTokenIds[0]'],
    ['ignoreEos', { ...ask, ignoreEos: 1 }, 'ignoreEos: expected true or false'],
    ['logprobs', { ...ask, logprobs: 21 }, 'logprobs: expected an integer from 0 to 20'],
    ['signal', { ...ask, signal: {} }, 'signal: expected an AbortSignal'],
    ['unknown option', { ...ask, max_tokens: 5 }, 'unknown option "max_tokens"'],
  ];

  test.each(cases)('%s', async (_, request, message) => {
    const generation = await start(request as GenerateRequest);
    await expect(generation.result).rejects.toThrow(InvalidArgumentError);
    await expect(generation.result).rejects.toThrow(message);
    expect(fake.submitted.length).toBe(0);
  });

  test('the nearest option is suggested', async () => {
    for (const [given, meant] of [
      ['max_tokens', 'maxTokens'],
      ['temprature', 'temperature'],
      ['stopTokenIDs', 'stopTokenIds'],
    ]) {
      const request = { ...ask, [given as string]: 1 } as GenerateRequest;
      await expect((await start(request)).result).rejects.toMatchObject({ hint: `did you mean ${meant}?` });
    }
    await expect((await start({ ...ask, zzz: 1 } as GenerateRequest)).result).rejects.toMatchObject({ hint: /^known: / });
  });

  test('a seed is chosen when none is given', async () => {
    await start(ask);
    await start(ask);
    const [a, b] = fake.submitted.map((request) => request.seed);
    expect(a).not.toBe(b);
    expect(a).toBeLessThan(1n << 53n);
  });
});
