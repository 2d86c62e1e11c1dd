/** Requests that end early, a queue that is full, a server that shuts down. */
import type OpenAI from 'openai';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { Model } from '../../lib/index.js';
import { type RunningServer, serve } from '../../lib/server/index.js';
import { nano } from '../helpers/files.js';
import { clientFor, MODEL, type Serving, serving } from './serving.js';

let server: Serving;
beforeAll(async () => {
  server = await serving({ keepAliveMs: 20 }, { maxNumSeqs: 2, maxWaiting: 2 });
});

const long = { model: MODEL, messages: [{ role: 'user' as const, content: 'Hi' }], max_tokens: 1900, ignore_eos: true };
const streaming = { ...long, stream: true } as OpenAI.ChatCompletionCreateParamsStreaming;
const idle = async () => {
  await expect.poll(() => server.model.stats().running + server.model.stats().waiting, { timeout: 20_000 }).toBe(0);
  const { freePages, cachedPages, heldPages, totalPages } = server.model.stats();
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
  const before = server.model.stats().decodeTokens;
  const controller = new AbortController();
  const asked = server.client.chat.completions.create(long as OpenAI.ChatCompletionCreateParamsNonStreaming, {
    signal: controller.signal,
  });
  await expect.poll(() => server.model.stats().running, { timeout: 10_000, interval: 1 }).toBe(1);
  controller.abort();
  await expect(asked).rejects.toThrow('aborted');
  await idle();
  expect(server.model.stats().decodeTokens - before).toBeLessThan(1900);
});

test('choices end together with their request', async () => {
  const stream = await server.client.chat.completions.create({ ...streaming, n: 2 });
  for await (const _ of stream) break;
  await idle();
});

test('a full queue refuses with 429 and says when to come back', async () => {
  const controllers = Array.from({ length: 4 }, () => new AbortController());
  const asked = controllers.map(({ signal }) =>
    server.client.chat.completions
      .create(long as OpenAI.ChatCompletionCreateParamsNonStreaming, { signal })
      .catch(() => undefined),
  );
  await expect.poll(() => server.model.stats().waiting, { timeout: 10_000, interval: 1 }).toBe(2);
  const refused = await fetch(`${server.url}/v1/chat/completions`, {
    method: 'POST',
    body: JSON.stringify({ ...long, stream: true }),
  });
  expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '1']);
  expect(await refused.json()).toMatchObject({ error: { type: 'rate_limit_error', code: 'queue_full' } });
  for (const controller of controllers) controller.abort();
  await Promise.all(asked);
  await idle();
});

test('a stream that waits in the queue shows that it lives, and then answers', async () => {
  const ahead = await Promise.all([1, 2].map(() => server.client.chat.completions.create(streaming)));
  const body = JSON.stringify({ ...streaming, max_tokens: 3 });
  const waiting = fetch(`${server.url}/v1/chat/completions`, { method: 'POST', body });
  const text = await (await waiting).text(); // headers came while others still ran
  expect(text).toMatch(/^: waiting\n\n/);
  expect(text).toMatch(/"finish_reason":"length".*\n\ndata: \[DONE\]\n\n$/);
  for (const stream of ahead) stream.controller.abort();
  await idle();
});

test('a client that reads late holds nobody up and gets everything', async () => {
  const body = JSON.stringify({ ...streaming, stream_options: { include_usage: true } });
  const response = await fetch(`${server.url}/v1/chat/completions`, { method: 'POST', body });
  await expect.poll(() => server.model.stats().running, { timeout: 20_000 }).toBe(0); // nothing has been read yet
  const events = (await response.text()).split('\n\n');
  expect(events.slice(-2)).toEqual(['data: [DONE]', '']);
  expect(JSON.parse((events.at(-3) ?? '').slice('data: '.length))).toMatchObject({ usage: { completion_tokens: 1900 } });
});

const running: RunningServer[] = [];
afterEach(async () => {
  for (const one of running.splice(0)) await one.close(0);
});

async function start(): Promise<{ server: RunningServer; client: OpenAI }> {
  const one = await serve((onProgress) => Model.load(nano, { threads: 1, onProgress }), {
    modelName: MODEL,
    host: '127.0.0.1',
    port: 0,
  });
  running.push(one);
  await one.ready;
  return { server: one, client: clientFor(one.url) };
}

test('a server that shuts down finishes what runs and takes nothing new', async () => {
  const { server: one, client } = await start();
  const stream = await client.chat.completions.create({
    ...streaming,
    max_tokens: 1500,
    stream_options: { include_usage: true },
  });
  const closed = one.close(60_000);
  const late = await fetch(`${one.url}/v1/completions`, { method: 'POST', body: '{"prompt":"x"}' });
  expect([late.status, late.headers.get('retry-after')]).toEqual([503, '2']);
  expect(await (await fetch(`${one.url}/health`)).json()).toEqual({ status: 'draining' });
  let usage: OpenAI.CompletionUsage | null | undefined;
  for await (const chunk of stream) usage = chunk.usage;
  expect(usage?.completion_tokens).toBe(1500);
  expect(await closed).toBe(0);
  await expect(fetch(`${one.url}/health`)).rejects.toThrow();
});

test('what still runs at the end of the drain is cut off and says so', async () => {
  const { server: one, client } = await start();
  const stream = await client.chat.completions.create(streaming);
  const read = (async () => {
    for await (const _ of stream);
  })();
  const failed = expect(read).rejects.toThrow('shutting down');
  expect(await one.close(0)).toBe(1);
  await failed;
});
