/**
 * The server as a fastify app: who may ask, how much, what comes back when it goes wrong. What the routes answer is in
 * routes/ and in lib/openai.
 */
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import type { Model } from '../index.js';
import { CLIENT_CLOSED, OpenAIError } from '../openai/index.js';
import { applyCors } from './cors.js';
import { handleErrors, refuseConnection, sendError } from './errors.js';
import { KeyRing } from './keys.js';
import { LoadingModel } from './loading.js';
import { createLog } from './log.js';
import { DEFAULT_MAX_BODY_BYTES, type ServerOptions } from './options.js';
import { pageFiles, pageRoutes } from './page/routes.js';
import { RequestRecord, type Sinks } from './record.js';
import { openaiRoutes } from './routes/openai.js';
import { systemRoutes } from './routes/system.js';
import { Service } from './service.js';

declare module 'fastify' {
  interface FastifyRequest {
    record?: RequestRecord;
  }
  interface FastifyInstance {
    service: Service;
  }
}

const REQUEST_ID = /^[\w.:-]{1,128}$/;

export function buildApp(model: Model | LoadingModel, options: ServerOptions): FastifyInstance {
  const service = new Service(model instanceof LoadingModel ? model : LoadingModel.of(model), options);
  const maxBodyBytes = options.maxBodyBytes ?? DEFAULT_MAX_BODY_BYTES;
  const app = Fastify({
    bodyLimit: maxBodyBytes,
    ...(options.tls === undefined ? {} : { https: options.tls }),
    forceCloseConnections: true,
    requestIdHeader: false,
    genReqId: ({ headers }) => {
      const given = headers['x-request-id'];
      return typeof given === 'string' && REQUEST_ID.test(given) ? given : crypto.randomUUID();
    },
    clientErrorHandler: refuseConnection,
    frameworkErrors: (_error, request, reply) => {
      const error = new OpenAIError(400, { message: 'the request could not be read' });
      sendError(request as FastifyRequest, reply as FastifyReply, error);
    },
  }) as FastifyInstance;
  app.decorate('service', service);
  app.decorateRequest('record', undefined);
  // The published examples send JSON as a form; what a body is, its route knows.
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (_request, body, done) => done(null, body));
  handleErrors(app, maxBodyBytes);
  watchRequests(app, service, options);
  guard(app, service, options);
  app.register(systemRoutes);
  app.register(openaiRoutes);
  if (options.page !== false) app.register(pageRoutes);
  return app;
}

/** Keeps the record of every request, and ends its work when its client leaves. */
function watchRequests(app: FastifyInstance, service: Service, options: ServerOptions): void {
  const sinks: Sinks = {
    metrics: service.metrics,
    budgets: service.budgets,
    log: options.log ?? createLog('silent', process.stderr),
    logContent: options.logContent ?? false,
  };
  app.addHook('onRequest', async (request, reply) => {
    const route = request.routeOptions.url ?? 'unknown';
    const span = options.tracing?.start(`${request.method} ${route}`, request.headers);
    const record = new RequestRecord(request.id, route, sinks, span);
    request.record = record;
    reply.header('x-request-id', request.id);
    request.raw.headers['content-type'] = 'application/json';
    service.running.add(record);
    const { raw } = reply;
    const close = () => {
      if (!raw.writableFinished) record.controller.abort();
      service.ended(record);
      record.close(raw.writableFinished ? raw.statusCode : CLIENT_CLOSED);
    };
    raw.once('finish', close).once('close', close);
  });
}

/** Keys, and what pages of other origins may do. */
function guard(app: FastifyInstance, service: Service, options: ServerOptions): void {
  const keys = new KeyRing(options.keys ?? [], options.limits ?? {});
  const page = new Set(options.page === false ? [] : pageFiles().keys());
  app.addHook('onRequest', async (request, reply) => {
    if (options.cors !== undefined && applyCors(options.cors, request, reply)) return reply;
    if (service.isDraining) reply.header('connection', 'close');
    const route = request.routeOptions.url;
    if (route === '/health' || request.record === undefined) return undefined;
    const isPage = route !== undefined && page.has(route);
    try {
      request.record.caller = keys.check(request.headers.authorization, isPage || isOwnPage(request));
    } catch (error) {
      reply.header('www-authenticate', isPage ? 'Basic realm="sigmoe", charset="UTF-8"' : 'Bearer');
      throw error;
    }
    return undefined;
  });
}

/** A call of the page this server sent: a browser adds its dialog's password to no other page's calls under this mark. */
function isOwnPage({ headers }: FastifyRequest): boolean {
  return headers['sec-fetch-site'] === 'same-origin';
}
