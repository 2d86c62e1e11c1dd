/** The routes of the API: each hands its body to lib/openai and its answer to the client. */
import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify';
import { BegunStream, type Completions, OpenAIError, type RequestContext } from '../../openai/index.js';
import { sendError } from '../errors.js';
import { DEFAULT_KEEP_ALIVE_MS } from '../options.js';
import { DONE, dataLine, EventStream } from '../sse.js';

type Answer = object | BegunStream<object>;

/** How an endpoint writes the items of its stream, and what it ends with. */
interface Wire {
  event(item: object): string;
  end: string;
}

const EVENTS: Wire = {
  event: (item) => ('type' in item ? `event: ${String(item.type)}\n` : '') + dataLine(item),
  end: '',
};
const CHUNKS: Wire = { event: dataLine, end: DONE };

export const openaiRoutes: FastifyPluginAsync = async (app) => {
  const { service } = app;

  const generating =
    (answer: (api: Completions, body: unknown, context: RequestContext) => Promise<Answer>, wire: Wire) =>
    async (request: FastifyRequest, reply: FastifyReply) => {
      const { record } = request;
      if (record?.caller === undefined) throw new OpenAIError(401, { message: 'nobody is known to have asked' });
      const { api } = service;
      record.body = bodyOf(request);
      record.claim = service.budgets.admit(record.caller);
      const stream = new EventStream(reply, (error) => service.failureOf(error));
      record.onStream = () => stream.keepAlive(service.options.keepAliveMs ?? DEFAULT_KEEP_ALIVE_MS);
      const context: RequestContext = {
        signal: record.controller.signal,
        requestId: request.id,
        cacheSalt: record.caller.id,
        observer: record,
      };
      let result: Answer;
      try {
        result = await answer(api, record.body, context);
      } catch (error) {
        const failure = service.failureOf(error);
        if (!stream.settle()) return sendError(request, reply, failure);
        record.fail(failure);
        stream.fail(failure, wire.end);
        return reply;
      }
      if (!(result instanceof BegunStream)) return result;
      const failure = await stream.send(result, wire.event, wire.end);
      if (failure !== undefined) record.fail(failure);
      return reply;
    };

  app.post(
    '/v1/chat/completions',
    generating((api, body, context) => api.chat(body, context), CHUNKS),
  );
  app.post(
    '/v1/completions',
    generating((api, body, context) => api.completions(body, context), CHUNKS),
  );
  app.post(
    '/v1/responses',
    generating((api, body, context) => api.responses(body, context), EVENTS),
  );
  app.post('/tokenize', async (request) => service.api.tokenize(bodyOf(request)));
  app.post('/detokenize', async (request) => service.api.detokenize(bodyOf(request)));
  app.get('/v1/models', async () => service.api.models());
  app.get<{ Params: { model: string } }>('/v1/models/:model', async (request) => service.api.model(request.params.model));
};

function bodyOf(request: FastifyRequest): string {
  return typeof request.body === 'string' ? request.body : '';
}
