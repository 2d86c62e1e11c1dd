/** What every endpoint knows of the model it answers for. */
import { nativeVersion } from '../inspect.js';
import type { Model } from '../model.js';
import { OpenAIError } from './errors.js';

export interface CompletionsOptions {
  /** What requests may call the model; answers carry the first. */
  modelName: string | readonly string[];
  /** Put before conversations that bring no system message of their own. */
  defaultSystemPrompt?: string | undefined;
  /** Shown with the model's card: what a reader of its answers should know. */
  disclaimer?: string | undefined;
  /** Accepts a chat template in a request; it runs in a thread of its own and under a time limit. */
  trustRequestChatTemplate?: boolean | undefined;
}

export class Host {
  readonly names: readonly string[];
  readonly name: string;
  /** Build, device and weights: what an answer depends on besides its request. */
  readonly fingerprint: string;
  readonly loadedAt = seconds();

  constructor(
    readonly model: Model,
    readonly options: CompletionsOptions,
  ) {
    this.names = typeof options.modelName === 'string' ? [options.modelName] : options.modelName;
    this.name = this.names[0] ?? model.info.path;
    this.fingerprint = `sigmoe-${nativeVersion()}-${model.info.device.name}-${model.info.weightFormat}`;
  }

  /** Refuses a request for another model; `auto`, as the model card's example has it, is whichever there is. */
  checkModel(asked: string | undefined): void {
    if (asked === undefined || asked === 'auto' || this.names.includes(asked)) return;
    const message = `model: this server has no such model; it serves ${this.names.join(', ')}`;
    throw new OpenAIError(404, { message, param: 'model', code: 'model_not_found' });
  }
}

/** Now, as the API counts time. */
export function seconds(): number {
  return Math.floor(Date.now() / 1000);
}
