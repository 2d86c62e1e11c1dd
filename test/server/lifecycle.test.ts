/** Requests that end early, a queue that is full, a server that shuts down. */
import type OpenAI from 'openai';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { type LoadOptions, Model } from '../../lib/index.js';
import { type RunningServer, type ServerOptions, serve } from '../../lib/server/index.js';
import { nano } from '../helpers/files.js';
import { clientFor, MODEL, type Serving, serving } from './serving.js';

let server: Serving;
let busy: Serving; // the slowest kernels: what runs there still runs when the next request comes
beforeAll(async () => {
  server = await serving({ keepAliveMs: 20 }, { maxNumSeqs: 2 });
  busy = await serving({}, { maxNumSeqs: 2, maxWaiting: 2, kernels: 'reference' });
});

const long = { model: MODEL, messages: [{ role: 'user' as const, content: 'Hi' }], max_tokens: 1900, ignore_eos: true };
const streaming = { ...long, stream: true } as OpenAI.ChatCompletionCreateParamsStreaming;
const idle = async ({ model } = server) => {
  await expect.poll(() => model.stats().running + model.stats().waiting).toBe(0);
  const { freePages, cachedPages, heldPages, totalPages } = model.stats();
  expect(freePages + cachedPages + heldPages).toBe(totalPages);
  expect(heldPages).toBe(0);
};

test('a client that leaves a stream ends its generation at once', async () => {
  const stream = await server.client.chat.completions.create(streaming);
  let seen = 0;
  for await (const _ of stream) if (++seen === 3) break;
  await idle();
  expect(seen).toBe(3);
  await expect.poll(() => server.logged()).toContain('"status":499');
});

test('a client that leaves before the answer ends its generation too', async () => {
  const before = busy.model.stats().decodeTokens;
  const controller = new AbortController();
  const asked = busy.client.chat.completions.create(long as OpenAI.ChatCompletionCreateParamsNonStreaming, {
    signal: controller.signal,
  });
  await expect.poll(() => busy.model.stats().running, { interval: 1 }).toBe(1);
  controller.abort();
  await expect(asked).rejects.toThrow('aborted');
  await idle(busy);
  expect(busy.model.stats().decodeTokens - before).toBeLessThan(1900);
});

test('choices end together with their request', async () => {
  const stream = await server.client.chat.completions.create({ ...streaming, n: 2 });
  for await (const _ of stream) break;
  await idle();
});

test('a full queue refuses with 429 and says when to come back', async () => {
  const controller = new AbortController();
  const asked: Promise<unknown>[] = [];
  const ask = (n: number) => {
    const { signal } = controller;
    for (let i = 0; i < n; ++i)
      asked.push(busy.client.chat.completions.create(streaming, { signal }).then((stream) => stream.toReadableStream()));
  };
  const places = () => [busy.model.stats().running, busy.model.stats().waiting];
  ask(2);
  await expect.poll(places, { interval: 1 }).toEqual([2, 0]);
  ask(2); // the queue is bounded at two: these would be refused if the first two had no place yet
  await expect.poll(places, { interval: 1 }).toEqual([2, 2]);
  const refused = await fetch(`${busy.url}/v1/chat/completions`, {
    method: 'POST',
    body: JSON.stringify({ ...long, stream: true }),
  });
  expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '1']);
  expect(await refused.json()).toMatchObject({ error: { type: 'rate_limit_error', code: 'queue_full' } });
  controller.abort();
  await Promise.allSettled(asked);
  await idle(busy);
});

test('a stream that waits in the queue shows that it lives, and then answers', async () => {
  const { server: one, client } = await start({ keepAliveMs: 20 }, { maxNumSeqs: 2, kernels: 'reference' });
  const ahead = await Promise.all([1, 2].map(() => client.chat.completions.create(streaming)));
  const body = JSON.stringify({ ...streaming, max_tokens: 3 });
  const waiting = await fetch(`${one.url}/v1/chat/completions`, { method: 'POST', body });
  let text = '';
  for await (const piece of waiting.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    if (text === '') for (const stream of ahead) stream.controller.abort(); // the first piece came while both still ran
    text += piece;
  }
  expect(text).toMatch(/^: waiting\n\n/);
  expect(text).toMatch(/"finish_reason":"length".*\n\ndata: \[DONE\]\n\n$/);
});

test('a client that reads late holds nobody up and gets everything', async () => {
  const body = JSON.stringify({ ...streaming, stream_options: { include_usage: true } });
  const before = server.model.stats().decodeTokens;
  const response = await fetch(`${server.url}/v1/chat/completions`, { method: 'POST', body });
  const made = () => server.model.stats().decodeTokens - before;
  await expect.poll(made).toBeGreaterThanOrEqual(1899); // nothing has been read yet
  const events = (await response.text()).split('\n\n');
  expect(events.slice(-2)).toEqual(['data: [DONE]', '']);
  expect(JSON.parse((events.at(-3) ?? '').slice('data: '.length))).toMatchObject({ usage: { completion_tokens: 1900 } });
});

const running: RunningServer[] = [];
afterEach(async () => {
  for (const one of running.splice(0)) await one.close(0);
});

async function start(
  options: Partial<ServerOptions> = {},
  load: LoadOptions = {},
): Promise<{ server: RunningServer; client: OpenAI }> {
  const one = await serve((onProgress) => Model.load(nano, { threads: 1, onProgress, ...load }), {
    modelName: MODEL,
    host: '127.0.0.1',
    port: 0,
    ...options,
  });
  running.push(one);
  await one.ready;
  return { server: one, client: clientFor(one.url) };
}

test('a server that shuts down finishes what runs and takes nothing new', async () => {
  const { server: one, client } = await start({}, { kernels: 'reference' }); // slow enough to still run when the next asks
  const stream = await client.chat.completions.create({
    ...streaming,
    max_tokens: 120,
    stream_options: { include_usage: true },
  });
  const closed = one.close(60_000);
  const late = await fetch(`${one.url}/v1/completions`, { method: 'POST', body: '{"prompt":"x"}' });
  expect([late.status, late.headers.get('retry-after')]).toEqual([503, '2']);
  expect(await (await fetch(`${one.url}/health`)).json()).toEqual({ status: 'draining' });
  let usage: OpenAI.CompletionUsage | null | undefined;
  for await (const chunk of stream) usage = chunk.usage;
  expect(usage?.completion_tokens).toBe(120);
  expect(await closed).toBe(0);
  await expect(fetch(`${one.url}/health`)).rejects.toThrow();
});

test('a stream that is cut off while it waits says so where its answer would stand', async () => {
  const { server: one, client } = await start({ keepAliveMs: 20 }, { maxNumSeqs: 1, kernels: 'reference' });
  const ahead = await client.chat.completions.create(streaming);
  const waiting = await fetch(`${one.url}/v1/chat/completions`, { method: 'POST', body: JSON.stringify(streaming) });
  expect(await one.close(0)).toBe(2);
  expect(await waiting.text()).toMatch(
    /^: waiting\n\n.*data: \{"error":\{"message":"the server is shutting down".*data: \[DONE\]\n\n$/s,
  );
  const read = async () => {
    for await (const _ of ahead);
  };
  await expect(read()).rejects.toThrow('shutting down');
});

test('what still runs at the end of the drain is cut off and says so', async () => {
  const { server: one, client } = await start({}, { kernels: 'reference' });
  const stream = await client.chat.completions.create(streaming);
  const read = (async () => {
    for await (const _ of stream);
  })();
  const failed = expect(read).rejects.toThrow('shutting down');
  expect(await one.close(0)).toBe(1);
  await failed;
});
