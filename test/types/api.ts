/** Compiled, never run: the declarations of the public API are what its documentation says. */
import {
  AbortError,
  type Chunk,
  ClientStream,
  createClient,
  EngineError,
  type ErrorCode,
  type GenerateResult,
  type Generation,
  InvalidArgumentError,
  inspect,
  type Message,
  Model,
  type ModelInfo,
  Tokenizer,
} from '../../lib/index.js';
import type { ChatChoice, ChatChunkChoice } from '../../lib/openai/index.js';

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(_: Equal<A, B>): void => {};

export async function examples(signal: AbortSignal): Promise<void> {
  await using model = await Model.load('models/nano', {
    device: 'auto',
    compute: 'float32',
    signal,
    onProgress: ({ bytesDone, bytesTotal }) => same<[number, number], [typeof bytesDone, typeof bytesTotal]>(true),
  });
  same<typeof model.info, ModelInfo>(true);
  same<typeof model.tokenizer, Tokenizer>(true);

  const messages: Message[] = [{ role: 'user', content: [{ type: 'text', text: 'Hi' }] }];
  const generation = model.generate({
    messages,
    temperature: 0.6,
    topP: 0.95,
    topK: 20,
    seed: 7n,
    stop: ['\n\n'],
    logprobs: 5,
  });
  same<typeof generation, Generation>(true);
  for await (const chunk of generation) same<typeof chunk, Chunk>(true);
  const result = await generation.result;
  same<typeof result, GenerateResult>(true);
  same<typeof result.finishReason, 'stop' | 'length' | 'abort' | 'deadline'>(true);
  same<typeof result.stopReason, string | number | null>(true);

  model.generate({ prompt: 'text' });
  model.generate({ prompt: [1, 2, 3], logitBias: { 5: -100 }, temperature: undefined });
  model.generate({ prompt: Int32Array.of(1), logitBias: new Map([[5, -100]]) });
  model.generate({ messages: '[]', tools: '[]' });
  const batch = await model.generateBatch([{ prompt: 'a' }, { messages }], { onProgress: ({ done, total }) => done / total });
  same<typeof batch, GenerateResult[]>(true);
  const logits = await model.logits([1, 2], { mtp: true });
  same<typeof logits, Float32Array>(true);
  same<ReturnType<typeof model.dispose>, Promise<void>>(true);

  // @ts-expect-error a request has a prompt or messages
  model.generate({ temperature: 1 });
  // @ts-expect-error and not both
  model.generate({ prompt: 'a', messages });
  // @ts-expect-error tools go with messages
  model.generate({ prompt: 'a', tools: [] });
  // @ts-expect-error unknown options do not compile
  model.generate({ prompt: 'a', max_tokens: 5 });
  // @ts-expect-error nor do values of another type
  model.generate({ prompt: 'a', temperature: '1' });
  // @ts-expect-error roles are a closed set
  model.generate({ messages: [{ role: 'robot', content: 'x' }] });
  // @ts-expect-error parts are text
  model.generate({ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: 'x' }] }] });
  // @ts-expect-error devices are a closed set
  await Model.load('x', { device: 'tpu' });
  // @ts-expect-error a model is made by Model.load
  new Model();
  // @ts-expect-error facts are read only
  model.info = await inspect('models/nano');
}

export async function clients(model: Model, stream: boolean): Promise<void> {
  const client = createClient(model, { modelName: 'nano' });
  const body = { messages: [{ role: 'user', content: 'Hi' }] };
  const whole = await client.chat.completions.create(body);
  same<typeof whole.choices, ChatChoice[]>(true);
  for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
    same<typeof chunk.choices, ChatChunkChoice[]>(true);
  }
  const either = await client.chat.completions.create({ ...body, stream });
  if (either instanceof ClientStream) same<typeof either.controller, AbortController>(true);
  else same<typeof either.choices, ChatChoice[]>(true);
  // @ts-expect-error a conversation is needed
  client.chat.completions.create({ prompt: 'Hi' });
}

export async function tokenizers(): Promise<void> {
  const tokenizer = await Tokenizer.load('models/nano');
  same<ReturnType<typeof tokenizer.encode>, number[]>(true);
  same<ReturnType<typeof tokenizer.encodeAsync>, Promise<number[]>>(true);
  const decoder = tokenizer.createDecoder({ skipSpecial: false });
  same<string, ReturnType<typeof decoder.push>>(true);
  tokenizer.applyChatTemplate([{ role: 'user', content: 'Hi' }], { tools: [{ type: 'function', function: { name: 'f' } }] });
  // @ts-expect-error a tokenizer is made by Tokenizer.load
  new Tokenizer();
}

export function errors(error: unknown): void {
  if (error instanceof EngineError) same<typeof error.code, ErrorCode>(true);
  if (error instanceof InvalidArgumentError) same<typeof error.argument, string>(true);
  if (error instanceof AbortError)
    same<typeof error.partial, GenerateResult | (GenerateResult | undefined)[] | undefined>(true);
  // @ts-expect-error codes are a closed set
  new EngineError('ERR_SOMETHING', 'x');
}
