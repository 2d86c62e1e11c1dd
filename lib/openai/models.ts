/** /v1/models: the one model under each of its names. */
import { OpenAIError } from './errors.js';
import type { Host } from './host.js';
import type { ModelCard, ModelList } from './wire.js';

export function listModels(host: Host): ModelList {
  return { object: 'list', data: host.names.map((name) => cardOf(host, name)) };
}

export function modelNamed(host: Host, name: string): ModelCard {
  if (host.names.includes(name)) return cardOf(host, name);
  throw new OpenAIError(404, {
    message: `no such model; there are ${host.names.join(', ')}`,
    code: 'model_not_found',
    param: 'model',
  });
}

function cardOf(host: Host, id: string): ModelCard {
  const { model, options } = host;
  return {
    id,
    object: 'model',
    created: host.loadedAt,
    owned_by: 'sigmoe',
    root: host.name,
    parent: null,
    max_model_len: model.info.context,
    permission: [],
    default_system_prompt: options.defaultSystemPrompt ?? null,
    disclaimer: options.disclaimer ?? null,
  };
}
