/** Cross-origin requests: pages of the allowed origins may call the server, those of others get no permission. */
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { CorsOptions } from './options.js';

const METHODS = ['GET', 'POST'];
const HEADERS = ['authorization', 'content-type', 'x-request-id'];
const MAX_AGE_SECONDS = 600;

/** Adds the permission, and answers a browser that asks for it beforehand: true when that was all. */
export function applyCors(options: CorsOptions, request: FastifyRequest, reply: FastifyReply): boolean {
  const { origin } = request.headers;
  if (origin === undefined) return false;
  const any = options.origins.includes('*');
  reply.header('vary', 'origin');
  if (!any && !options.origins.includes(origin)) return false;
  // A wildcard does not count for requests that carry credentials.
  reply.header('access-control-allow-origin', any && !options.credentials ? '*' : origin);
  reply.header('access-control-expose-headers', 'x-request-id, retry-after');
  if (options.credentials) reply.header('access-control-allow-credentials', 'true');
  if (request.method !== 'OPTIONS' || request.headers['access-control-request-method'] === undefined) return false;
  reply
    .header('access-control-allow-methods', (options.methods ?? METHODS).join(', '))
    .header('access-control-allow-headers', (options.headers ?? HEADERS).join(', '))
    .header('access-control-max-age', String(MAX_AGE_SECONDS))
    .code(204)
    .send();
  return true;
}
