/** The load generator against a server that is told what to answer: what counts as what, and what may go wrong. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { BenchClient, type Target } from '../../lib/bench/client.js';
import { runLoad } from '../../lib/bench/load.js';
import { benchServe, firstModel, untilReady } from '../../lib/bench/serve.js';

type Answer = (request: IncomingMessage, response: ServerResponse, body: Record<string, unknown>) => void | Promise<void>;

let server: Server;
let answer: Answer;
let target: Target;
let seen: { url: string; body: Record<string, unknown>; headers: IncomingMessage['headers'] }[];
let connections: number;

beforeEach(async () => {
  seen = [];
  connections = 0;
  server = createServer(async (request, response) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    const body = (parts.length === 0 ? {} : JSON.parse(Buffer.concat(parts).toString())) as Record<string, unknown>;
    seen.push({ url: request.url ?? '', body, headers: request.headers });
    if (request.url === '/metrics') response.end('sigmoe:num_requests_running 0\n');
    else await answer(request, response, body);
  });
  server.on('connection', () => connections++);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  target = {
    baseUrl,
    endpoint: '/v1/completions',
    api: 'completions',
    model: 'm',
    headers: { 'x-a': 'b' },
    body: {},
    insecure: false,
  };
});
afterEach(() => {
  server.closeAllConnections();
  server.close();
});

const event = (data: unknown) => `data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`;
const stream = (...events: unknown[]): Answer => {
  return (_, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.end(events.map(event).join(''));
  };
};
const request = { prompt: 'hello', promptTokens: 2, outputTokens: 4 };
const usage = { choices: [], usage: { prompt_tokens: 5, completion_tokens: 4 } };
const completion = stream(
  { choices: [{ text: 'a' }] },
  { choices: [{ text: 'b' }] },
  { choices: [{ text: '', finish_reason: 'stop' }] },
  usage,
  '[DONE]',
);

const sendOnce = async (to: Target) => {
  const client = new BenchClient(to);
  try {
    return await client.send(request);
  } finally {
    client.close();
  }
};

test('a completion: chunks with text count, tokens are those of usage', async () => {
  answer = completion;
  const outcome = await sendOnce({ ...target, body: { ignore_eos: true } });
  expect(outcome).toMatchObject({ error: undefined, text: 'ab', promptTokens: 5, outputTokens: 4 });
  expect(outcome.chunkTimes).toHaveLength(2);
  expect(outcome.endedAt).toBeGreaterThanOrEqual(outcome.chunkTimes[1] ?? Infinity);
  expect(seen[0]).toMatchObject({ url: '/v1/completions', headers: { 'x-a': 'b', 'content-type': 'application/json' } });
  expect(seen[0]?.body).toEqual({
    model: 'm',
    prompt: 'hello',
    max_tokens: 4,
    stream: true,
    stream_options: { include_usage: true },
    ignore_eos: true,
  });
});

test('a chat: the role chunk is no content; reasoning and tool calls are', async () => {
  const delta = (fields: object) => ({ choices: [{ delta: fields }] });
  answer = stream(
    delta({ role: 'assistant', content: '' }),
    delta({ reasoning: 'r', reasoning_content: 'r' }),
    delta({ content: 'c' }),
    delta({ content: null, tool_calls: [{ index: 0 }] }),
    { choices: [{ delta: {}, finish_reason: 'stop' }] },
    usage,
    '[DONE]',
  );
  const outcome = await sendOnce({ ...target, endpoint: '/v1/chat/completions', api: 'chat' });
  expect(outcome).toMatchObject({ error: undefined, text: 'rc', outputTokens: 4 });
  expect(outcome.chunkTimes).toHaveLength(3);
  expect(seen[0]?.body).toMatchObject({ messages: [{ role: 'user', content: 'hello' }], max_tokens: 4 });
});

test('times are those of arrival, not of the end', async () => {
  answer = async (_, response) => {
    response.write(event({ choices: [{ text: 'a' }] }));
    await delay(400);
    response.end(event({ choices: [{ text: 'b' }] }) + event(usage) + event('[DONE]'));
  };
  const { chunkTimes, sentAt } = await sendOnce(target);
  expect((chunkTimes[1] ?? 0) - (chunkTimes[0] ?? 0)).toBeGreaterThan(20);
  expect(chunkTimes[0]).toBeGreaterThanOrEqual(sentAt);
});

test.each<[string, Answer, RegExp]>([
  ['a refusal', (_, response) => void response.writeHead(429).end('{"error": {"message": "busy"}}'), /^status 429: .*busy/],
  [
    'an error in the stream',
    stream({ choices: [{ text: 'a' }] }, { error: { message: 'broke' } }, '[DONE]'),
    /in the stream: broke/,
  ],
  ['a stream without its end', stream({ choices: [{ text: 'a' }] }), /without data: \[DONE\]/],
  [
    'a connection that breaks',
    (_, response) => void response.write(event(usage), () => response.destroy()),
    /aborted|ECONNRESET/,
  ],
  ['what is not JSON', stream('nonsense'), /JSON/],
])('%s is a failed request', async (_, behaviour, words) => {
  answer = behaviour;
  expect((await sendOnce(target)).error).toMatch(words);
});

test('connections are kept and used again', async () => {
  answer = completion;
  const client = new BenchClient(target);
  for (let i = 0; i < 5; i++) expect((await client.send(request)).error).toBeUndefined();
  client.close();
  expect(connections).toBe(1);
});

test('no more requests are under way than allowed, and all are sent', async () => {
  let running = 0;
  let most = 0;
  answer = async (incoming, response, body) => {
    most = Math.max(most, ++running);
    await delay(5);
    running--;
    await completion(incoming, response, body);
  };
  const client = new BenchClient(target);
  const requests = Array.from({ length: 20 }, () => request);
  const done: number[] = [];
  const { outcomes, duration } = await runLoad(requests, {
    requestRate: Infinity,
    burstiness: 1,
    seed: 0,
    maxConcurrency: 3,
    send: (each, dueAt) => client.send(each, undefined, dueAt),
    onDone: (n) => done.push(n),
  });
  client.close();
  expect(most).toBe(3);
  expect(outcomes.filter((outcome) => outcome.error === undefined)).toHaveLength(20);
  expect(done).toEqual(Array.from({ length: 20 }, (_, i) => i + 1));
  expect(duration).toBeGreaterThan(0.03);
  expect(Math.max(...outcomes.map((outcome) => outcome.sentAt - outcome.dueAt))).toBeGreaterThan(10);
});

test('a run: a check, warm-ups that do not count, then the measurement', async () => {
  answer = completion;
  const options = { requestRate: Infinity, burstiness: 1, maxConcurrency: undefined, warmups: 2, seed: 0, goodput: undefined };
  const { measured, speculation, retokenized } = await benchServe({
    ...options,
    target,
    requests: [request, request, request],
    warmup: request,
    tokenizer: undefined,
  });
  expect(measured).toMatchObject({ completed: 3, failed: 0, totalInput: 15, totalOutput: 12 });
  expect({ speculation, retokenized }).toEqual({ speculation: undefined, retokenized: null });
  expect(seen.filter(({ url }) => url === '/v1/completions')).toHaveLength(6);

  answer = (_, response) => void response.writeHead(404).end('no such model');
  await expect(benchServe({ ...options, target, requests: [request], warmup: request, tokenizer: undefined })).rejects.toThrow(
    /\/v1\/completions did not answer a first request: status 404: no such model/,
  );
  answer = stream({ choices: [{ text: 'a' }] }, '[DONE]');
  await expect(benchServe({ ...options, target, requests: [request], warmup: request, tokenizer: undefined })).rejects.toThrow(
    /sends no usage/,
  );
});

test('an aborted run ends at once, and its requests with it', async () => {
  const controller = new AbortController();
  let dropped = 0;
  answer = (incoming, response, body) => {
    if (seen.length === 1) return completion(incoming, response, body);
    response.on('close', () => dropped++);
    response.write(event({ choices: [{ text: 'a' }] }), () => controller.abort(new Error('enough')));
  };
  const run = benchServe({
    target,
    requests: [request, request],
    warmup: request,
    requestRate: Infinity,
    burstiness: 1,
    maxConcurrency: undefined,
    warmups: 0,
    seed: 0,
    goodput: undefined,
    tokenizer: undefined,
    signal: controller.signal,
  });
  await expect(run).rejects.toThrow('enough');
  await expect.poll(() => dropped).toBeGreaterThan(0);
});

test('a server that is still starting is waited for, as long as asked', async () => {
  let asked = 0;
  answer = (_, response) => {
    if (++asked < 3) response.writeHead(503).end('{}');
    else response.end('{"data": [{"id": "nano"}]}');
  };
  await expect(untilReady(0, () => firstModel(target))).rejects.toThrow(/status 503/);
  expect(await untilReady(60, () => firstModel(target))).toBe('nano');
  expect(asked).toBe(3);
});

test('the first model is found, or it is said why not', async () => {
  answer = (_, response) => void response.end('{"data": [{"id": "nano"}, {"id": "other"}]}');
  expect(await firstModel(target)).toBe('nano');
  answer = (_, response) => void response.writeHead(401).end('{}');
  await expect(firstModel(target)).rejects.toThrow(/\/v1\/models: status 401: .*OPENAI_API_KEY/);
  answer = (_, response) => void response.end('{"data": []}');
  await expect(firstModel(target)).rejects.toThrow(/\/v1\/models: it lists no model/);
  await expect(firstModel({ ...target, baseUrl: 'http://127.0.0.1:1' })).rejects.toThrow(
    /127\.0\.0\.1:1\/v1\/models: .*ECONNREFUSED/,
  );
});
