/**
 * The OpenAI API without HTTP: bodies in, answers out. The server speaks it over the network, the in-process client
 * without one. Bodies are objects or JSON text; errors are OpenAIError.
 */
import type { Model } from '../model.js';
import { wholeChat } from './chat.js';
import { readChat } from './chat_request.js';
import { streamedChat } from './chat_stream.js';
import { readCompletion, streamedCompletion, wholeCompletion } from './completions.js';
import { toOpenAIError } from './errors.js';
import { Generations } from './generations.js';
import { type CompletionsOptions, Host } from './host.js';
import { listModels, modelNamed } from './models.js';
import { streamedResponse, wholeResponse } from './responses.js';
import { readResponse } from './responses_request.js';
import type { ResponseEvent, ResponseObject } from './responses_wire.js';
import { type RequestContext, WIRE_NAMES } from './sampling.js';
import { BegunStream } from './stream.js';
import { detokenize, tokenize } from './tokenize.js';
import type { ChatCompletion, ChatCompletionChunk, Completion, ModelCard, ModelList, Tokens } from './wire.js';

export { CLIENT_CLOSED, type ErrorBody, OpenAIError, toOpenAIError } from './errors.js';
export type { CompletionsOptions } from './host.js';
export type * from './responses_wire.js';
export type { RequestContext, RequestObserver } from './sampling.js';
export { BegunStream } from './stream.js';
export type * from './wire.js';

export class Completions {
  private readonly host: Host;

  constructor(model: Model, options: CompletionsOptions) {
    this.host = new Host(model, options);
  }

  /** An answer, or with `stream: true` its chunks, of which the first is there when the promise resolves. */
  async chat(body: unknown, context: RequestContext = {}): Promise<ChatCompletion | BegunStream<ChatCompletionChunk>> {
    const plan = await wired(() => readChat(this.host, body, context));
    const run = new Generations(this.host.model, plan.requests, context, plan.stream);
    if (plan.stream) return BegunStream.begin(streamedChat(this.host, plan, run), plan.wireNames);
    return wired(() => wholeChat(this.host, plan, run), plan.wireNames);
  }

  async completions(body: unknown, context: RequestContext = {}): Promise<Completion | BegunStream<Completion>> {
    const plan = await wired(() => readCompletion(this.host, body, context));
    const run = new Generations(this.host.model, plan.requests, context, plan.stream);
    if (plan.stream) return BegunStream.begin(streamedCompletion(this.host, plan, run), plan.wireNames);
    return wired(() => wholeCompletion(this.host, plan, run), plan.wireNames);
  }

  async responses(body: unknown, context: RequestContext = {}): Promise<ResponseObject | BegunStream<ResponseEvent>> {
    const plan = await wired(() => readResponse(this.host, body, context));
    const run = new Generations(this.host.model, plan.requests, context, plan.stream);
    if (plan.stream) return BegunStream.begin(streamedResponse(this.host, plan, run), plan.wireNames);
    return wired(() => wholeResponse(this.host, plan, run), plan.wireNames);
  }

  tokenize(body: unknown): Promise<Tokens> {
    return wired(() => tokenize(this.host, body));
  }

  detokenize(body: unknown): Promise<{ prompt: string }> {
    return wired(() => detokenize(this.host, body));
  }

  models(): ModelList {
    return listModels(this.host);
  }

  model(name: string): ModelCard {
    return modelNamed(this.host, name);
  }
}

/** Runs a step of a request; whatever it throws becomes an error of the API. */
async function wired<T>(step: () => T | Promise<T>, wireNames: ReadonlyMap<string, string> = new Map(WIRE_NAMES)): Promise<T> {
  try {
    return await step();
  } catch (error) {
    throw toOpenAIError(error, wireNames);
  }
}
