/** Routes about the server: is it alive, what is it, how is it doing. */
import type { FastifyPluginAsync } from 'fastify';
import { nativeVersion } from '../../index.js';

export const systemRoutes: FastifyPluginAsync = async (app) => {
  const { service } = app;

  app.get('/health', async (_request, reply) => {
    const { state } = service.loading;
    if (service.isDraining) return reply.code(503).send({ status: 'draining' });
    if (state.stage === 'ready' && state.model.failure !== undefined) return reply.code(503).send({ status: 'broken' });
    if (state.stage === 'ready') return { status: 'ok' };
    const percent = state.stage === 'loading' ? { percent: state.percent } : {};
    if (state.stage === 'loading') reply.header('retry-after', '2');
    return reply.code(503).send({ status: state.stage, stage: state.stage, ...percent });
  });

  app.get('/version', async () => ({
    version: nativeVersion(),
    disclaimer: service.options.disclaimer ?? null,
    default_system_prompt: service.options.defaultSystemPrompt ?? null,
  }));

  app.get('/metrics', async (_request, reply) => {
    const { registry } = service.metrics;
    return reply.type(registry.contentType).send(await registry.metrics());
  });
};
