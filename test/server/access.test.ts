/** Who may ask, and how much: API keys, budgets, prefix caches that are kept apart. */
import { beforeAll, describe, expect, test } from 'vitest';
import { buildApp } from '../../lib/server/app.js';
import { Budgets } from '../../lib/server/budgets.js';
import { parseKeyFile } from '../../lib/server/keys.js';
import { clientFor, MODEL, type Serving, serving } from './serving.js';

const keys = [
  { id: 'ward-1', key: 'sk-one' },
  { id: 'ward-2', key: 'sk-two', maxConcurrency: 1 },
  { id: 'ward-3', key: 'sk-three', tokensPerMinute: 40 },
];
const basic = (key: string) => `Basic ${Buffer.from(`anyone:${key}`).toString('base64')}`;

let server: Serving;
beforeAll(async () => {
  // Slow kernels: a long answer still runs when the next request of the same key comes.
  server = await serving({ keys }, { kernels: 'generic' });
});

const chat = { model: MODEL, messages: [{ role: 'user' as const, content: 'Hi' }], max_tokens: 3 };

describe('keys', () => {
  test('no route answers without one, health excepted', async () => {
    const routes: { method: string; url: string }[] = [];
    const app = buildApp(server.model, { modelName: MODEL, keys });
    app.addHook('onRoute', ({ method, url }) => {
      for (const one of [method].flat()) routes.push({ method: one, url });
    });
    await app.ready();
    expect(routes.length).toBeGreaterThan(12);
    for (const { method, url } of [...routes, { method: 'GET', url: '/nothing' }, { method: 'PATCH', url: '/v1/models' }]) {
      for (const authorization of [undefined, 'Bearer wrong', 'Bearer ', 'Basic !', basic('wrong')]) {
        const headers = authorization === undefined ? {} : { authorization };
        const answer = await app.inject({ method: method as 'GET', url, headers });
        expect(`${method} ${url} ${answer.statusCode}`).toBe(`${method} ${url} ${url === '/health' ? 200 : 401}`);
        if (url !== '/health' && method !== 'HEAD')
          expect(answer.json()).toMatchObject({ error: { type: 'authentication_error' } });
      }
    }
    await app.close();
  });

  test('each of them answers', async () => {
    for (const { key } of keys.slice(0, 2)) {
      expect((await clientFor(server.url, key).chat.completions.create(chat)).choices).toHaveLength(1);
    }
    await expect(clientFor(server.url, 'sk-four').chat.completions.create(chat)).rejects.toMatchObject({
      status: 401,
      code: 'invalid_api_key',
    });
    expect(server.logged()).toContain('"key":"ward-1"');
    expect(server.logged()).not.toContain('sk-');
  });

  test('a browser may give one as a password, for the page and its own calls only', async () => {
    const page = await fetch(server.url);
    expect([page.status, page.headers.get('www-authenticate')]).toEqual([401, 'Basic realm="sigmoe", charset="UTF-8"']);
    const authorization = basic('sk-one');
    expect((await fetch(server.url, { headers: { authorization } })).status).toBe(200);
    expect((await fetch(`${server.url}/v1/models`, { headers: { authorization } })).status).toBe(401);
    const own = { authorization, 'sec-fetch-site': 'same-origin' };
    expect((await server.app.inject({ url: '/v1/models', headers: own })).statusCode).toBe(200);
    const other = { authorization, 'sec-fetch-site': 'cross-site' };
    expect((await server.app.inject({ url: '/v1/models', headers: other })).statusCode).toBe(403);
    const unknown = { authorization, 'sec-fetch-site': 'none' };
    expect((await server.app.inject({ url: '/v1/models', headers: unknown })).statusCode).toBe(401);
  });

  test('from a file', () => {
    const text = '# wards\n\nsk-a\nward-2 sk-b max-concurrency=4 tokens-per-minute=100 # night\n';
    expect(parseKeyFile(text)).toEqual([
      { id: 'key-1', key: 'sk-a' },
      { id: 'ward-2', key: 'sk-b', maxConcurrency: 4, tokensPerMinute: 100 },
    ]);
    expect(() => parseKeyFile('a b c')).toThrow('line 1: expected "key" or "id key"');
    expect(() => parseKeyFile('\na b speed=3')).toThrow('line 2: unknown limit speed');
    expect(() => parseKeyFile('a b max-concurrency=0')).toThrow('line 1: max-concurrency: expected an integer');
  });
});

describe('budgets', () => {
  test('a key runs no more requests than its limit', async () => {
    const client = clientFor(server.url, 'sk-two');
    const long = await client.chat.completions.create({ ...chat, stream: true, max_tokens: 1500, ignore_eos: true } as never);
    const refused = await fetch(`${server.url}/v1/chat/completions`, {
      method: 'POST',
      body: JSON.stringify(chat),
      headers: { authorization: 'Bearer sk-two' },
    });
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '1']);
    expect(await refused.json()).toMatchObject({ error: { type: 'rate_limit_error', code: 'concurrency_limit' } });
    expect((await clientFor(server.url, 'sk-one').chat.completions.create(chat)).choices).toHaveLength(1); // others are free
    (long as unknown as { controller: AbortController }).controller.abort();
    await expect.poll(() => server.model.stats().running).toBe(0);
    expect((await client.chat.completions.create(chat)).choices).toHaveLength(1);
    await expect(client.chat.completions.create({ ...chat, n: 2 })).rejects.toMatchObject({ status: 400, param: 'n' });
    await expect(client.completions.create({ model: MODEL, prompt: ['a', 'b'] })).rejects.toMatchObject({ status: 400 });
  });

  test('a key uses no more tokens per minute than its limit', async () => {
    const client = clientFor(server.url, 'sk-three');
    await client.chat.completions.create({ ...chat, max_tokens: 20, ignore_eos: true } as never);
    const refused = client.chat.completions.create(chat);
    await expect(refused).rejects.toMatchObject({ status: 429, code: 'rate_limit_exceeded' });
    const headers = await refused.catch((error: { headers: Headers }) => error.headers);
    expect(Number((headers as Headers).get('retry-after'))).toBeGreaterThan(0);
  });

  test('tokens come back steadily', () => {
    let now = 0;
    const budgets = new Budgets(() => now);
    const caller = { id: 'a', limits: { tokensPerMinute: 600 } };
    budgets.admit(caller).end();
    budgets.charge(caller, 700);
    expect(() => budgets.admit(caller)).toThrow('600 tokens per minute');
    now += 9_000; // 90 of the 100 it is behind
    expect(() => budgets.admit(caller)).toThrow('600 tokens per minute');
    now += 2_000;
    budgets.admit(caller).end();
    now += 3_600_000; // never more than one minute's worth
    budgets.charge(caller, 601);
    expect(() => budgets.admit(caller)).toThrow('600 tokens per minute');
  });
});

test('a key finds no prompt of another in the cache', async () => {
  const messages = [{ role: 'user' as const, content: 'The same long question from two wards. '.repeat(30) }];
  const cached = async (key: string) => {
    const { usage } = await clientFor(server.url, key).chat.completions.create({ ...chat, messages });
    return usage?.prompt_tokens_details?.cached_tokens ?? -1;
  };
  expect(await cached('sk-one')).toBe(0);
  expect(await cached('sk-one')).toBeGreaterThanOrEqual(128);
  expect(await cached('sk-two')).toBe(0);
});
