/**
 * A server that answers what a test tells it to, chunk by chunk: what a real model cannot be made to say on demand
 * (markup, reasoning, errors half way) and when (a stream that waits to be stopped).
 */
import fastify, { type FastifyInstance } from 'fastify';
import { pageRoutes } from '../../lib/server/page/routes.js';

export type Delta = { content?: string; reasoning?: string };
export type Step = Delta | { error: string } | { finish: string } | 'wait';

export interface Stub {
  app: FastifyInstance;
  url: string;
  /** The answer to the next requests. */
  steps: Step[];
  /** Bodies and keys of the chat requests so far. */
  bodies: Record<string, unknown>[];
  keys: (string | undefined)[];
  /** Requests whose client went away. */
  dropped: number;
  requiredKey: string | undefined;
  /** Percent, while the model is said to be loading. */
  loading: number | undefined;
}

export async function startStub(): Promise<Stub> {
  const app = fastify({ forceCloseConnections: true });
  const stub: Stub = { app, url: '', steps: [], bodies: [], keys: [], dropped: 0, requiredKey: undefined, loading: undefined };
  await app.register(pageRoutes);
  app.get('/health', (_request, reply) => {
    if (stub.loading === undefined) return { status: 'ok' };
    return reply.code(503).send({ status: 'loading', stage: 'loading', percent: stub.loading });
  });
  app.get('/version', () => ({ version: '1', disclaimer: 'Not medical <b>advice</b>.' }));
  app.get('/v1/models', (request, reply) => {
    if (stub.requiredKey === undefined || request.headers.authorization === `Bearer ${stub.requiredKey}`) {
      return { object: 'list', data: [{ id: 'stub-model', object: 'model' }] };
    }
    return reply.code(401).send({ error: { message: 'no key', type: 'invalid_request_error', param: null, code: null } });
  });
  app.post('/v1/chat/completions', (request, reply) => {
    stub.bodies.push(request.body as Record<string, unknown>);
    stub.keys.push(request.headers.authorization);
    reply.hijack();
    const { raw } = reply;
    raw.on('close', () => {
      if (!raw.writableEnded) stub.dropped++;
    });
    raw.writeHead(200, { 'content-type': 'text/event-stream' });
    const event = (data: unknown) => raw.write(`data: ${JSON.stringify(data)}\n\n`);
    let tokens = 0;
    for (const step of stub.steps) {
      if (step === 'wait') return;
      if ('error' in step) event({ error: { message: step.error, type: 'server_error', param: null, code: null } });
      else if ('finish' in step) event({ choices: [{ index: 0, delta: {}, finish_reason: step.finish }] });
      else event({ choices: [{ index: 0, delta: step, finish_reason: null }], usage: { completion_tokens: ++tokens } });
    }
    raw.end('data: [DONE]\n\n');
  });
  stub.url = await app.listen({ port: 0, host: '127.0.0.1' });
  return stub;
}
