/** Errors of HTTP itself, in the shape of the API: unknown routes, wrong methods, bodies that cannot be read. */
import type { Socket } from 'node:net';
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { OpenAIError, toOpenAIError } from '../openai/index.js';

export function handleErrors(app: FastifyInstance, maxBodyBytes: number): void {
  const routes = new Map<string, Set<string>>();
  app.addHook('onRoute', ({ url, method }) => {
    const methods = routes.get(url) ?? new Set<string>();
    routes.set(url, methods);
    for (const one of [method].flat()) methods.add(one);
  });

  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split('?', 1)[0] ?? '';
    const allowed = [...routes].find(([url]) => matches(url, path))?.[1];
    if (allowed !== undefined && !allowed.has(request.method)) {
      const methods = [...allowed].join(', ');
      reply.header('allow', methods);
      return sendError(
        request,
        reply,
        new OpenAIError(405, { message: `this route takes ${methods}`, code: 'method_not_allowed' }),
      );
    }
    return sendError(request, reply, new OpenAIError(404, { message: 'no such route', code: 'not_found' }));
  });

  app.setErrorHandler((error: FastifyError | OpenAIError, request, reply) =>
    sendError(request, reply, httpError(error, maxBodyBytes)),
  );
}

export function sendError(request: FastifyRequest, reply: FastifyReply, error: OpenAIError): FastifyReply {
  request.record?.fail(error);
  if (error.retryAfter !== undefined) reply.header('retry-after', String(error.retryAfter));
  return reply.code(error.status).type('application/json; charset=utf-8').send(JSON.stringify(error.body));
}

function httpError(error: FastifyError | OpenAIError, maxBodyBytes: number): OpenAIError {
  if (error instanceof OpenAIError) return error;
  const { code, statusCode = 500 } = error as FastifyError;
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE') {
    return new OpenAIError(413, { message: `the request body is larger than ${maxBodyBytes} bytes`, code: 'body_too_large' });
  }
  if (statusCode < 400 || statusCode >= 500) return toOpenAIError(error);
  return new OpenAIError(statusCode, { message: 'the request could not be read', code: code ?? null });
}

function matches(pattern: string, path: string): boolean {
  if (!pattern.includes(':')) return pattern === path;
  const parts = path.split('/');
  const wanted = pattern.split('/');
  return parts.length === wanted.length && wanted.every((part, i) => part.startsWith(':') || part === parts[i]);
}

/** Bytes that are not HTTP. */
export function refuseConnection(error: Error & { code?: string }, socket: Socket): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const timedOut = error.code === 'ERR_HTTP_REQUEST_TIMEOUT';
  const tooLarge = error.code === 'HPE_HEADER_OVERFLOW';
  const [status, phrase] = timedOut ? [408, 'Request Timeout'] : tooLarge ? [431, 'Headers Too Large'] : [400, 'Bad Request'];
  const body = JSON.stringify(new OpenAIError(status, { message: 'the request is not valid HTTP' }).body);
  const head = `HTTP/1.1 ${status} ${phrase}\r\ncontent-type: application/json; charset=utf-8\r\n`;
  socket.end(`${head}content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`);
}
