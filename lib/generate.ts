/**
 * One generation: from a request to its chunks and its result.
 *
 * How one ends: by itself (`result` resolves), by an error (it rejects), by its signal (it rejects with an AbortError that
 * carries what there was), or because the reader left its loop or called `stop()` (it resolves, finishReason `abort`).
 * Errors reach whoever awaits `result` or iterates; a generation that nobody watches raises nothing.
 */
import { Answer } from './answer.js';
import { opensReasoning } from './chat/reasoning.js';
import type { Dispatcher, RequestListener, SampledToken } from './dispatcher.js';
import { AbortError, DisposedError, type EngineError, InvalidArgumentError, toEngineError } from './errors.js';
import { checkIds, checkPromptLength, type ModelLimits, type ReadRequest, readRequest } from './options.js';
import type { Tokenizer } from './tokenizer.js';
import type { ChatRequest, Chunk, GenerateRequest, GenerateResult } from './types.js';

/** What a generation needs of its model. */
export interface GenerationContext extends ModelLimits {
  tokenizer: Tokenizer;
  dispatcher: Dispatcher;
  context: number;
  isDisposed(): boolean;
}

/** Prompts of ids are searched for an open `<think>` this far from their end. */
const PROMPT_TAIL_TOKENS = 16;

export class Generation implements AsyncIterable<Chunk> {
  /** Settles when the output ends, whether or not anyone iterates. */
  readonly result: Promise<GenerateResult>;

  private readonly startedAt = performance.now();
  private firstTokenAt = 0;
  private lastTokenAt = 0;
  private promptTokens = 0;
  private read: ReadRequest | undefined;
  private answer: Answer | undefined;
  private request: number | undefined;
  private ended: { error?: EngineError } | undefined;
  private isRead = false;
  /** Readers that wait for a chunk or the end. */
  private readonly waiting: (() => void)[] = [];
  private resolve: (result: GenerateResult) => void = () => {};
  private reject: (error: EngineError) => void = () => {};
  private readonly onSignal = () => this.fail(this.abortError());

  constructor(
    private readonly model: GenerationContext,
    request: GenerateRequest,
  ) {
    this.result = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.result.catch(() => {});
    this.start(request).catch((error: unknown) => this.fail(toEngineError(error)));
  }

  /** Ends the output now; `result` resolves with what there is and finishReason `abort`. */
  stop(): void {
    this.end('abort');
  }

  [Symbol.asyncIterator](): AsyncIterator<Chunk, void, undefined> {
    if (this.isRead) throw new InvalidArgumentError('generation', 'a generation can be iterated once');
    this.isRead = true;
    return {
      next: async () => {
        for (;;) {
          const chunk = this.answer?.take();
          if (chunk !== undefined) return { value: chunk, done: false };
          if (this.ended?.error !== undefined) throw this.ended.error;
          if (this.ended !== undefined) return { value: undefined, done: true };
          await new Promise<void>((resolve) => {
            this.waiting.push(resolve);
          });
        }
      },
      return: async () => {
        this.stop();
        return { value: undefined, done: true };
      },
    };
  }

  private async start(request: GenerateRequest): Promise<void> {
    const { model } = this;
    this.checkOpen();
    const read = readRequest(request, model);
    this.read = read;
    if (read.signal?.aborted) throw this.abortError();
    read.signal?.addEventListener('abort', this.onSignal, { once: true });

    const { ids, opened } = await this.encodePrompt(request);
    if (this.ended !== undefined) return;
    this.checkOpen();
    checkPromptLength('prompt', ids, model.context, 1);
    this.promptTokens = ids.length;
    this.answer = new Answer(model.tokenizer, read, opened);
    this.request = model.dispatcher.submit({ ...read.native, prompt: ids }, this.listener());
  }

  private async encodePrompt(request: GenerateRequest): Promise<{ ids: Int32Array; opened: boolean }> {
    const { tokenizer, vocabSize } = this.model;
    if (request.prompt === undefined) {
      const { messages, tools, addGenerationPrompt, continueFinalMessage, chatTemplateKwargs } = request as ChatRequest;
      const options = { tools, addGenerationPrompt, continueFinalMessage, chatTemplateKwargs };
      const ids = checkIds('messages', await tokenizer.encodeChat(messages, options), vocabSize);
      return { ids, opened: opensReasoning(this.promptEnd(ids)) };
    }
    const { prompt } = request;
    const ids = checkIds('prompt', typeof prompt === 'string' ? await tokenizer.encodeAsync(prompt) : prompt, vocabSize);
    return { ids, opened: opensReasoning(this.promptEnd(ids)) };
  }

  private promptEnd(ids: Int32Array): string {
    const decoder = this.model.tokenizer.createDecoder({ skipSpecial: false });
    return decoder.push(ids.slice(-PROMPT_TAIL_TOKENS)) + decoder.flush();
  }

  private listener(): RequestListener {
    return {
      token: (token) => this.takeToken(token),
      stepEnded: () => this.wake(),
      finished: (reason) => this.end(reason),
      failed: (error) => this.fail(error),
    };
  }

  private takeToken(token: SampledToken): void {
    this.lastTokenAt = performance.now();
    if (this.answer?.tokens.length === 0) this.firstTokenAt = this.lastTokenAt;
    if (this.answer?.push(token)) this.end('stop');
  }

  private end(finishReason: GenerateResult['finishReason']): void {
    if (this.ended !== undefined) return;
    this.answer?.finish();
    this.close({});
    this.resolve(this.makeResult(finishReason));
  }

  private fail(error: EngineError): void {
    if (this.ended !== undefined) return;
    this.close({ error });
    this.reject(error);
  }

  private close(ended: { error?: EngineError }): void {
    this.ended = ended;
    this.read?.signal?.removeEventListener('abort', this.onSignal);
    if (this.request !== undefined) this.model.dispatcher.drop(this.request);
    this.wake();
  }

  private wake(): void {
    for (const resolve of this.waiting.splice(0)) resolve();
  }

  private checkOpen(): void {
    if (this.model.isDisposed()) throw new DisposedError();
  }

  private abortError(): AbortError {
    this.answer?.finish();
    const partial = this.makeResult('abort');
    const message = `the generation was aborted after ${partial.tokens.length} tokens`;
    return new AbortError(message, partial, { cause: this.read?.signal?.reason });
  }

  private makeResult(finishReason: GenerateResult['finishReason']): GenerateResult {
    const { answer } = this;
    const tokens = answer?.tokens ?? [];
    const decodeMs = this.lastTokenAt - this.firstTokenAt;
    return {
      text: answer?.text ?? '',
      reasoning: answer?.reasoning ?? '',
      tokens,
      finishReason,
      stopReason: finishReason === 'stop' ? (answer?.stopReason ?? null) : null,
      seed: this.read?.native.seed ?? 0n,
      usage: {
        promptTokens: this.promptTokens,
        completionTokens: tokens.length,
        totalTokens: this.promptTokens + tokens.length,
        reasoningTokens: answer?.reasoningTokens ?? 0,
      },
      timings: {
        ttftMs: tokens.length > 0 ? this.firstTokenAt - this.startedAt : 0,
        totalMs: performance.now() - this.startedAt,
        tokensPerSecond: decodeMs > 0 ? ((tokens.length - 1) * 1000) / decodeMs : 0,
      },
      ...((this.read?.native.logprobs ?? -1) >= 0 ? { logprobs: answer?.logprobs ?? [] } : {}),
    };
  }
}
