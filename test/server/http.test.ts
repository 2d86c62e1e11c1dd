/** HTTP around the API: bodies, routes, methods, errors in OpenAI's shape, pages of other origins, TLS. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { request as httpsRequest } from 'node:https';
import type { AddressInfo } from 'node:net';
import { connect } from 'node:net';
import { join } from 'node:path';
import { beforeAll, describe, expect, test, vi } from 'vitest';
import { DeviceError } from '../../lib/index.js';
import { buildApp } from '../../lib/server/app.js';
import { LoadingModel } from '../../lib/server/loading.js';
import { folderWith } from '../helpers/files.js';
import { MODEL, type Serving, serving } from './serving.js';

let server: Serving;
const maxBodyBytes = 1_000_000;
beforeAll(async () => {
  server = await serving({ maxBodyBytes, cors: { origins: ['https://ward.example'] } });
});

const chat = { model: MODEL, messages: [{ role: 'user', content: 'Hi' }], max_tokens: 2 };
const send = (path: string, init: RequestInit = {}): Promise<Response> => fetch(server.url + path, init);
const post = (body: string, headers: Record<string, string> = {}): Promise<Response> =>
  send('/v1/chat/completions', { method: 'POST', body, headers });

/** A whole error of the API, and nothing else. */
async function errorOf(
  response: Response,
): Promise<{ message: string; type: string; param: string | null; code: string | null }> {
  expect(response.headers.get('content-type')).toContain('application/json');
  const body = (await response.json()) as {
    error: { message: string; type: string; param: string | null; code: string | null };
  };
  expect(Object.keys(body)).toEqual(['error']);
  expect(Object.keys(body.error)).toEqual(['message', 'type', 'param', 'code']);
  return body.error;
}

describe('bodies', () => {
  test.each(['application/json', 'application/x-www-form-urlencoded', 'text/plain; charset=latin1', 'nonsense', 'a/b/c;;'])(
    'JSON is read under content-type %s',
    async (type) => {
      expect((await post(JSON.stringify(chat), { 'content-type': type })).status).toBe(200);
    },
  );

  test('without any content-type, as bytes', async () => {
    const response = await send('/v1/chat/completions', {
      method: 'POST',
      body: new TextEncoder().encode(JSON.stringify(chat)),
    });
    expect(response.status).toBe(200);
  });

  test.each([
    ['nothing', ''],
    ['half', '{"messages": ['],
    ['a list', '[]'],
    ['a number', '3'],
    ['null', 'null'],
    ['not JSON, which is not repeated', 'secret words'],
  ])('%s', async (_name, body) => {
    const response = await post(body);
    expect(response.status).toBe(400);
    expect((await errorOf(response)).message).not.toContain('secret');
  });

  test.each(['metadata', 'tools', 'chat_template_kwargs', 'guided_json', 'messages', 'prompt'])(
    '%s nested without end',
    async (name) => {
      const deep = `${'{"a":['.repeat(20_000)}${']}'.repeat(20_000)}`;
      const response = await post(
        `{${name === 'messages' ? '' : '"messages":[{"role":"user","content":"x"}],'}"${name}":${deep}}`,
      );
      expect(response.status).toBe(400);
      expect((await errorOf(response)).param).toBe(name);
    },
  );

  test('one that is too large', async () => {
    const response = await post(JSON.stringify({ ...chat, user: 'x'.repeat(maxBodyBytes) }));
    expect(response.status).toBe(413);
    expect(await errorOf(response)).toMatchObject({ code: 'body_too_large' });
  });

  test.each<[string, Record<string, unknown>, string]>([
    ['an unknown field', { temprature: 1 }, 'temprature'],
    ['an unknown field that is null', { nonsense: null }, 'nonsense'],
    ['an unknown field of a message', { messages: [{ role: 'user', content: 'x', text: 'y' }] }, 'messages[0].text'],
    ['an unknown role', { messages: [{ role: 'robot', content: 'x' }] }, 'messages[0].role'],
    [
      'an image',
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] },
      'messages[0].content',
    ],
    ['no messages', { messages: [] }, 'messages'],
    ['a text for a number', { temperature: '1' }, 'temperature'],
    ['a number out of range', { temperature: 1000 }, 'temperature'],
    ['top_p of 0', { top_p: 0 }, 'top_p'],
    ['n of 0', { n: 0 }, 'n'],
    ['max_tokens of 0', { max_tokens: 0 }, 'max_tokens'],
    ['max_completion_tokens of 0', { max_tokens: undefined, max_completion_tokens: 0 }, 'max_completion_tokens'],
    ['two different limits', { max_tokens: 3, max_completion_tokens: 4 }, 'max_tokens'],
    ['top_logprobs alone', { top_logprobs: 3 }, 'top_logprobs'],
    ['too many top_logprobs', { logprobs: true, top_logprobs: 30 }, 'top_logprobs'],
    ['stream_options alone', { stream_options: { include_usage: true }, stream: false }, 'stream_options'],
    ['prompt_logprobs streamed', { prompt_logprobs: 1, stream: true }, 'prompt_logprobs'],
    ['beam search', { use_beam_search: true }, 'use_beam_search'],
    [
      'tools of more text than a prompt',
      { tools: [{ type: 'function', function: { name: 'f', description: 'x'.repeat(140_000) } }] },
      'tools',
    ],
    ['variables of more text than a prompt', { chat_template_kwargs: { a: 'x'.repeat(140_000) } }, 'chat_template_kwargs'],
    [
      'a conversation without end',
      { messages: Array.from({ length: 16_385 }, () => ({ role: 'user', content: 'x' })) },
      'messages',
    ],
    ['a bias for a word', { logit_bias: { fever: 1 } }, 'logit_bias'],
    ['a stop token beyond the vocabulary', { stop_token_ids: [999_999] }, 'stop_token_ids'],
    ['an empty stop string', { stop: '' }, 'stop'],
    ['a template of its own', { chat_template: '{{ messages }}' }, 'chat_template'],
    ['a variable that is an option', { chat_template_kwargs: { tools: [] } }, 'chat_template_kwargs.tools'],
    ['an id with spaces', { request_id: 'a b' }, 'request_id'],
    ['a prompt longer than the context', { messages: [{ role: 'user', content: 'pain '.repeat(3000) }] }, 'messages'],
  ])('%s is refused by name', async (_name, extra, param) => {
    for (const stream of [false, true]) {
      const response = await post(JSON.stringify({ ...chat, stream, ...extra }));
      expect(response.status).toBe(400);
      expect(await errorOf(response)).toMatchObject({ type: 'invalid_request_error', param });
    }
  });
});

describe('routes', () => {
  test.each([
    ['GET', '/nothing', 404],
    ['POST', '/v1/chat/completion', 404],
    ['GET', '/v1/chat/completions', 405],
    ['PUT', '/v1/completions', 405],
    ['DELETE', '/v1/models/nano', 405],
    ['POST', '/health', 405],
    ['GET', '/%zz', 400],
    ['GET', '/v1/models/%00%ff', 400],
  ])('%s %s is %d', async (method, path, status) => {
    const response = await send(path, { method });
    expect(response.status).toBe(status);
    await errorOf(response);
    if (status === 405) expect(response.headers.get('allow')).toMatch(/GET|POST/);
  });

  test('health, version, metrics and the page', async () => {
    expect(await (await send('/health')).json()).toEqual({ status: 'ok' });
    expect(await (await send('/version')).json()).toMatchObject({ version: expect.stringMatching(/^\d/) });
    expect(await (await send('/metrics')).text()).toContain('sigmoe:num_requests_running');
    expect((await send('/')).headers.get('content-type')).toContain('text/html');
  });

  test('bytes that are not HTTP', async () => {
    const { port } = server.app.server.address() as AddressInfo;
    const answer = await new Promise<string>((resolve, reject) => {
      let text = '';
      const socket = connect(port, '127.0.0.1', () => socket.write('NONSENSE\r\n\r\n'));
      socket.on('data', (data) => {
        text += String(data);
      });
      socket.on('close', () => resolve(text));
      socket.on('error', reject);
    });
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect(JSON.parse(answer.slice(answer.indexOf('\r\n\r\n')))).toHaveProperty('error.message');
  });
});

describe('pages of other origins', () => {
  const from = (origin: string, init: RequestInit = {}) =>
    send('/v1/models', { ...init, headers: { origin, ...init.headers } });

  test('an allowed one may ask', async () => {
    const response = await from('https://ward.example');
    expect(response.headers.get('access-control-allow-origin')).toBe('https://ward.example');
    const headers = { 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' };
    const before = await from('https://ward.example', { method: 'OPTIONS', headers });
    expect(before.status).toBe(204);
    expect(before.headers.get('access-control-allow-headers')).toContain('authorization');
  });

  test('another gets no permission', async () => {
    const response = await from('https://elsewhere.example');
    expect(response.headers.get('access-control-allow-origin')).toBeNull();
  });

  test('another cannot make the server compute what it may not read', async () => {
    const ask = (headers: Record<string, string>) =>
      server.app.inject({ method: 'POST', url: '/v1/chat/completions', headers, body: JSON.stringify(chat) });
    const uninvited = await ask({
      origin: 'https://elsewhere.example',
      'sec-fetch-site': 'cross-site',
      'sec-fetch-mode': 'no-cors',
    });
    expect([uninvited.statusCode, uninvited.json<{ error: object }>().error]).toMatchObject([
      403,
      { code: 'origin_not_allowed' },
    ]);
    expect(
      (await ask({ origin: 'https://ward.example', 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'cors' })).statusCode,
    ).toBe(200);
    expect((await ask({ 'sec-fetch-site': 'same-origin', 'sec-fetch-mode': 'cors' })).statusCode).toBe(200);
    const link = await server.app.inject({
      url: '/',
      headers: { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' },
    });
    expect(link.statusCode).toBe(200);
  });

  test('a stream carries the permission too', async () => {
    const response = await post(JSON.stringify({ ...chat, stream: true }), { origin: 'https://ward.example' });
    expect(response.headers.get('access-control-allow-origin')).toBe('https://ward.example');
    expect(response.headers.get('content-type')).toContain('text/event-stream');
    expect(await response.text()).toMatch(/data: \[DONE\]\n\n$/);
  });
});

test('after a device failure health says broken, and a request that meets it gets 503', async () => {
  const lost = new DeviceError('the GPU fell off the bus while it read "my prompt"', 'start the process anew');
  const broken = await serving();
  vi.spyOn(broken.model, 'generate').mockImplementation(() => {
    throw lost;
  });
  vi.spyOn(broken.model, 'failure', 'get').mockReturnValue(lost);
  const answer = await fetch(`${broken.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: MODEL, prompt: 'x', max_tokens: 1 }),
  });
  expect(answer.status).toBe(503);
  expect(await answer.json()).toMatchObject({ error: { code: 'device_failed' } });
  const health = await fetch(`${broken.url}/health`);
  expect([health.status, await health.json()]).toEqual([503, { status: 'broken' }]);
});

test('while the model loads, health says how far and the rest answers 503', async () => {
  const loading = new LoadingModel();
  const app = buildApp(loading, { modelName: MODEL });
  let fail: (error: Error) => void = () => {};
  loading.begin((onProgress) => {
    onProgress({ bytesDone: 42, bytesTotal: 100 });
    return new Promise((_, reject) => {
      fail = reject;
    });
  });
  const health = await app.inject('/health');
  expect([health.statusCode, health.json()]).toEqual([503, { status: 'loading', stage: 'loading', percent: 42 }]);
  const early = await app.inject({ method: 'POST', url: '/v1/chat/completions', body: chat });
  expect(early.statusCode).toBe(503);
  expect(early.headers['retry-after']).toBe('2');
  expect(early.json()).toMatchObject({ error: { type: 'unavailable_error', code: 'loading' } });
  fail(new Error('secret path'));
  await expect(loading.ready).rejects.toThrow('secret path');
  const failed = await app.inject('/health');
  expect([failed.statusCode, failed.json()]).toEqual([503, { status: 'failed', stage: 'failed' }]);
  expect((await app.inject('/v1/models')).json()).toMatchObject({ error: { code: 'load_failed' } });
  await app.close();
});

test('https', async () => {
  const folder = folderWith({});
  const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
  const subject = ['-subj', '/CN=localhost', '-days', '1'];
  try {
    execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', cert, ...subject], {
      stdio: 'ignore',
    });
  } catch {
    console.log('https is not tested: there is no openssl to make a certificate');
    return;
  }
  const app = buildApp(server.model, { modelName: MODEL, tls: { key: readFileSync(key), cert: readFileSync(cert) } });
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  const status = await new Promise((resolve, reject) => {
    const request = httpsRequest({ port, host: '127.0.0.1', path: '/health', ca: readFileSync(cert), servername: 'localhost' });
    request.on('response', (response) => resolve(response.resume().statusCode)).on('error', reject);
    request.end();
  });
  expect(status).toBe(200);
  await app.close();
});
