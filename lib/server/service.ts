/** What the routes stand on: the model and its API, once there is one, and what the server does besides answering. */
import type { Model } from '../index.js';
import { CLIENT_CLOSED, Completions, OpenAIError, toOpenAIError } from '../openai/index.js';
import { Budgets } from './budgets.js';
import type { LoadingModel } from './loading.js';
import { Metrics } from './metrics.js';
import type { ServerOptions } from './options.js';
import type { RequestRecord } from './record.js';

const RETRY_SECONDS = 2;

export class Service {
  readonly metrics: Metrics;
  readonly budgets = new Budgets();
  /** Requests that have not ended. */
  readonly running = new Set<RequestRecord>();
  isDraining = false;
  private completions: Completions | undefined;
  private whenIdle: () => void = () => {};
  private isBreakLogged = false;

  constructor(
    readonly loading: LoadingModel,
    readonly options: ServerOptions,
  ) {
    this.metrics = new Metrics([options.modelName].flat()[0] ?? '', () => this.model);
  }

  get model(): Model | undefined {
    const { state } = this.loading;
    return state.stage === 'ready' ? state.model : undefined;
  }

  /** The API of the loaded model; before it is loaded, and while the server shuts down, an error that says so. */
  get api(): Completions {
    if (this.isDraining) throw shuttingDown();
    const { state } = this.loading;
    if (state.stage === 'loading') {
      const message = `the model is still loading (${state.percent}%)`;
      throw new OpenAIError(503, { message, code: 'loading' }, { retryAfter: RETRY_SECONDS });
    }
    if (state.stage === 'failed') throw new OpenAIError(503, { message: 'the model could not be loaded', code: 'load_failed' });
    this.completions ??= new Completions(state.model, this.options);
    return this.completions;
  }

  /** What a request failed with: one that the server itself cut off was not cancelled by its client. */
  failureOf(error: unknown): OpenAIError {
    const failure = toOpenAIError(error);
    return failure.status === CLIENT_CLOSED && this.isDraining ? shuttingDown() : failure;
  }

  ended(record: RequestRecord): void {
    this.logBreak();
    this.running.delete(record);
    if (this.running.size === 0) this.whenIdle();
  }

  /** Lets what runs end by itself for a while, then cuts it off; resolves with how many that were. */
  async drain(drainMs: number, lastWordsMs: number): Promise<number> {
    this.isDraining = true;
    await this.idleWithin(drainMs);
    const cut = this.running.size;
    for (const record of this.running) record.controller.abort();
    await this.idleWithin(lastWordsMs);
    return cut;
  }

  /** Why the model broke is for whoever runs the server: its callers see only that it did. */
  private logBreak(): void {
    const failure = this.model?.failure;
    if (failure === undefined || this.isBreakLogged) return;
    this.isBreakLogged = true;
    this.options.log?.error(
      { reason: failure.message, hint: failure.hint },
      'the model is broken: every request fails from here on',
    );
  }

  private async idleWithin(ms: number): Promise<void> {
    if (this.running.size === 0) return;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.whenIdle = resolve;
      timer = setTimeout(resolve, ms);
    });
    clearTimeout(timer);
  }
}

function shuttingDown(): OpenAIError {
  return new OpenAIError(503, { message: 'the server is shutting down', code: 'shutting_down' }, { retryAfter: RETRY_SECONDS });
}
