/**
 * The `openai` package's client object over a model in the same process: an app that talks to a server changes the line
 * that makes its client. No network, no key; bodies, answers, chunks and errors are those of the wire.
 */
import { basename } from 'node:path';
import { ReadableStream } from 'node:stream/web';
import type { Model } from './model.js';
import { CLIENT_CLOSED, type ErrorBody, OpenAIError } from './openai/errors.js';
import { Completions, type RequestContext } from './openai/index.js';
import type { ResponseEvent, ResponseObject } from './openai/responses_wire.js';
import type { BegunStream } from './openai/stream.js';
import type { ChatCompletion, ChatCompletionChunk, Completion, ModelCard } from './openai/wire.js';

export interface ClientOptions {
  /** What requests must call the model. Left out, any name will do, and answers carry the name of the model's folder. */
  modelName?: string | readonly string[] | undefined;
  /** Put before conversations that bring no system message of their own. */
  defaultSystemPrompt?: string | undefined;
}

/** Of the options the `openai` package takes with a request, those that mean something without a network. */
export interface ClientRequestOptions {
  signal?: AbortSignal | null | undefined;
  /** Milliseconds. */
  timeout?: number | undefined;
}

/** The names and properties of the `openai` package's APIError. */
export class ClientError extends Error {
  readonly status: number;
  readonly error: ErrorBody['error'];
  readonly code: string | null;
  readonly param: string | null;
  readonly type: string;

  constructor(cause: OpenAIError) {
    super(`${cause.status} ${cause.message}`, { cause });
    this.name = cause.status === CLIENT_CLOSED ? 'APIUserAbortError' : 'APIError';
    this.status = cause.status;
    this.error = cause.body.error;
    this.code = this.error.code;
    this.param = this.error.param;
    this.type = this.error.type;
  }
}

/** A streamed answer. Leaving the loop or `controller.abort()` ends it. */
export class ClientStream<T> implements AsyncIterable<T> {
  constructor(
    private readonly source: BegunStream<T>,
    readonly controller: AbortController,
  ) {}

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    try {
      for await (const item of this.source) yield item;
    } catch (error) {
      if (!this.controller.signal.aborted) throw clientError(error);
    }
  }

  /** One line of JSON for each item, as UTF-8. */
  toReadableStream(): ReadableStream<Uint8Array> {
    const encoder = new TextEncoder();
    const items = this[Symbol.asyncIterator]();
    return new ReadableStream({
      async pull(controller) {
        const { value, done } = await items.next();
        if (done) controller.close();
        else controller.enqueue(encoder.encode(`${JSON.stringify(value)}\n`));
      },
      async cancel() {
        await items.return();
      },
    });
  }
}

type Streamable = { stream?: boolean | null | undefined };
/** With `stream: true` a stream, without it the whole; where the type does not say, either. */
type Answer<P, Whole, Piece> = P extends { stream: infer S }
  ? S extends true
    ? ClientStream<Piece>
    : Whole
  : 'stream' extends keyof P
    ? Whole | ClientStream<Piece>
    : Whole;
type Create<Body, Whole, Piece> = <P extends Body & Streamable>(
  body: P,
  options?: ClientRequestOptions,
) => Promise<Answer<P, Whole, Piece>>;

export interface ModelPage extends AsyncIterable<ModelCard> {
  object: 'list';
  data: ModelCard[];
}

export interface Client {
  chat: { completions: { create: Create<{ messages: readonly object[] }, ChatCompletion, ChatCompletionChunk> } };
  completions: { create: Create<{ prompt?: unknown }, Completion, Completion> };
  /** Whole answers carry their text as `output_text` too. */
  responses: { create: Create<{ input?: unknown }, ResponseObject & { output_text: string }, ResponseEvent> };
  models: { list(): Promise<ModelPage> & AsyncIterable<ModelCard>; retrieve(name: string): Promise<ModelCard> };
}

export function createClient(model: Model, options: ClientOptions = {}): Client {
  const { modelName, defaultSystemPrompt } = options;
  const api = new Completions(model, { modelName: modelName ?? basename(model.info.path), defaultSystemPrompt });

  /** What goes over the wire of a body; the name of the model only where it is to be checked. */
  const wire = (body: object) => JSON.stringify(modelName === undefined ? { ...body, model: undefined } : body);

  async function create<Whole extends object, Piece>(
    endpoint: (body: string, context: RequestContext) => Promise<Whole | BegunStream<Piece>>,
    body: object,
    { signal, timeout }: ClientRequestOptions = {},
  ): Promise<Whole | ClientStream<Piece>> {
    const controller = new AbortController();
    const signals = [
      controller.signal,
      ...(signal ? [signal] : []),
      ...(timeout === undefined ? [] : [AbortSignal.timeout(timeout)]),
    ];
    try {
      const answer = await endpoint(wire(body), { signal: AbortSignal.any(signals) });
      return Symbol.asyncIterator in answer ? new ClientStream(answer, controller) : answer;
    } catch (error) {
      throw clientError(error);
    }
  }

  const client = {
    chat: {
      completions: {
        create: (body: object, own?: ClientRequestOptions) => create((text, context) => api.chat(text, context), body, own),
      },
    },
    completions: {
      create: (body: object, own?: ClientRequestOptions) =>
        create((text, context) => api.completions(text, context), body, own),
    },
    responses: {
      create: async (body: object, own?: ClientRequestOptions) => {
        const answer = await create((text, context) => api.responses(text, context), body, own);
        return answer instanceof ClientStream ? answer : { ...answer, output_text: textOf(answer) };
      },
    },
    models: {
      list: () => {
        const { data } = api.models();
        const each = async function* () {
          yield* data;
        };
        const page: ModelPage = { object: 'list', data, [Symbol.asyncIterator]: each };
        return Object.assign(Promise.resolve(page), { [Symbol.asyncIterator]: each });
      },
      retrieve: async (name: string) => {
        try {
          return api.model(name);
        } catch (error) {
          throw clientError(error);
        }
      },
    },
  };
  // The types of `create` say which of its two results a body leads to; the code above does not need to know.
  return client as unknown as Client;
}

function clientError(error: unknown): unknown {
  return error instanceof OpenAIError ? new ClientError(error) : error;
}

function textOf({ output }: ResponseObject): string {
  const parts = output.flatMap((item) => (item.type === 'message' ? item.content : []));
  return parts.map(({ text }) => text).join('');
}
