/**
 * One generation: from a request to its chunks and its result.
 *
 * How one ends: by itself (`result` resolves), by an error (it rejects), by its signal (it rejects with an AbortError that
 * carries what there was), or because the reader left its loop or called `stop()` (it resolves, finishReason `abort`).
 * At its deadline it resolves with what there is.
 * Errors reach whoever awaits `result` or iterates; a generation that nobody watches raises nothing.
 */
import { Answer } from './answer.js';
import { opensReasoning } from './chat/reasoning.js';
import { checkIds, checkPromptLength } from './checks.js';
import type { Dispatcher, RequestListener, SampledToken } from './dispatcher.js';
import { AbortError, DisposedError, type EngineError, InvalidArgumentError, toEngineError } from './errors.js';
import type { GrammarMatcher, Grammars } from './grammar/matcher.js';
import { MaskFeeder } from './mask_feeder.js';
import { type ModelLimits, type ReadRequest, readRequest } from './request_options.js';
import type { Tokenizer } from './tokenizer.js';
import type { ChatRequest, Chunk, GenerateRequest, GenerateResult, GenerationStart } from './types.js';

/** What a generation needs of its model. */
export interface GenerationContext extends ModelLimits {
  tokenizer: Tokenizer;
  dispatcher: Dispatcher;
  grammars: Grammars;
  context: number;
  isDisposed(): boolean;
}

/** Prompts of ids are searched for an open `<think>` this far from their end. */
const PROMPT_TAIL_TOKENS = 16;

export class Generation implements AsyncIterable<Chunk> {
  /** Settles when the output ends, whether or not anyone iterates. */
  readonly result: Promise<GenerateResult>;
  /** Resolves when the prompt is computed and the first token about to come; rejects when the output ends before. */
  readonly started: Promise<GenerationStart>;

  private readonly startedAt = performance.now();
  private firstTokenAt = 0;
  private lastTokenAt = 0;
  private prompt: Int32Array = new Int32Array(0);
  private prefill: Omit<GenerationStart, 'promptTokens'> = { cachedTokens: 0, queueMs: 0 };
  private draftedTokens = 0;
  private acceptedTokens = 0;
  private masks: MaskFeeder | undefined;
  private read: ReadRequest | undefined;
  private answer: Answer | undefined;
  private request: number | undefined;
  private ended: { error?: EngineError } | undefined;
  private isRead = false;
  /** Readers that wait for a chunk or the end. */
  private readonly waiting: (() => void)[] = [];
  private resolve: (result: GenerateResult) => void = () => {};
  private reject: (error: EngineError) => void = () => {};
  private resolveStart: (start: GenerationStart) => void = () => {};
  private rejectStart: (error: EngineError) => void = () => {};
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
    this.started = new Promise((resolve, reject) => {
      this.resolveStart = resolve;
      this.rejectStart = reject;
    });
    this.started.catch(() => {});
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

    const matcher = read.structured === undefined ? undefined : await this.openGrammar(read);
    try {
      const whole = await this.encodePrompt(request);
      if (this.ended !== undefined) return;
      this.checkOpen();
      const prompt = whole.subarray(-(read.truncatePromptTokens ?? whole.length));
      checkPromptLength('prompt', prompt, model.context, 1);
      this.prompt = prompt;
      const opened = opensReasoning(this.promptEnd(prompt));
      this.answer = new Answer(model.tokenizer, read, opened);
      this.request = model.dispatcher.submit({ ...read.native, ...this.textFields(read, opened), prompt }, this.listener());
      if (matcher === undefined) return;
      // The tag that ends the reasoning may be one token or several; the last one holds its last character.
      const mayClose = (id: number) => model.tokenizer.decode([id], { skipSpecial: false }).includes('>');
      const reasoning = { maskWords: Math.ceil(model.vocabSize / 32), mayClose };
      this.masks = new MaskFeeder(matcher, model.dispatcher, this.request, reasoning, (error) => this.fail(error));
      this.masks.feed(opened, []);
    } finally {
      if (this.masks === undefined) matcher?.close();
    }
  }

  private openGrammar({ structured, signal }: ReadRequest): Promise<GrammarMatcher | undefined> {
    if (structured === undefined) return Promise.resolve(undefined);
    return this.model.grammars.open(structured, signal === undefined ? {} : { signal });
  }

  /** What the engine wants as ids of what the caller gave as text. */
  private textFields(read: ReadRequest, opened: boolean) {
    const { tokenizer } = this.model;
    const idsOf = (text: string) => Int32Array.from(tokenizer.encode(text, { special: false }));
    const markIds = (tag: string) => {
      const id = tokenizer.idOf(tag);
      return read.native.thinkingBudget < 0 ? new Int32Array(0) : id === undefined ? idsOf(tag) : Int32Array.of(id);
    };
    // A word begins differently after a space.
    const badWords = read.badWords.flatMap((word) => [idsOf(word), idsOf(` ${word}`)]);
    const [thinkingBeginIds, thinkingEndIds] = [markIds('<think>'), markIds('</think>')];
    return { badWords, thinkingOpen: opened, thinkingBeginIds, thinkingEndIds };
  }

  private async encodePrompt(request: GenerateRequest): Promise<Int32Array> {
    const { tokenizer, vocabSize } = this.model;
    if (request.prompt === undefined) {
      const { messages, tools, addGenerationPrompt, continueFinalMessage, chatTemplateKwargs } = request as ChatRequest;
      const options = { tools, addGenerationPrompt, continueFinalMessage, chatTemplateKwargs };
      return checkIds('messages', await tokenizer.encodeChat(messages, options), vocabSize);
    }
    const { prompt } = request;
    return checkIds('prompt', typeof prompt === 'string' ? await tokenizer.encodeAsync(prompt) : prompt, vocabSize);
  }

  private promptEnd(ids: Int32Array): string {
    const decoder = this.model.tokenizer.createDecoder({ skipSpecial: false });
    return decoder.push(ids.slice(-PROMPT_TAIL_TOKENS)) + decoder.flush();
  }

  private listener(): RequestListener {
    return {
      started: (start) => {
        this.prefill = start;
        this.resolveStart({ ...start, promptTokens: this.prompt });
      },
      promptScore: (score) =>
        this.answer?.pushPromptScore({ ...score, id: this.prompt[this.answer.promptLogprobs.length] ?? -1 }),
      drafts: ({ drafted, accepted }) => {
        this.draftedTokens += drafted;
        this.acceptedTokens += accepted;
      },
      token: (token) => this.takeToken(token),
      stepEnded: (drafts) => {
        if (this.ended === undefined) this.masks?.feed(this.answer?.isReasoning ?? false, drafts);
        this.wake();
      },
      finished: (reason) => this.end(reason),
      failed: (error) => this.fail(error),
    };
  }

  private takeToken(token: SampledToken): void {
    this.lastTokenAt = performance.now();
    if (this.answer?.tokens.length === 0) this.firstTokenAt = this.lastTokenAt;
    const { answer } = this;
    if (answer === undefined) return;
    const inReasoning = answer.isReasoning;
    const ends = answer.push(token);
    this.masks?.take(token.id, !inReasoning);
    if (ends) this.end('stop');
  }

  private end(finishReason: GenerateResult['finishReason']): void {
    if (this.ended !== undefined) return;
    this.answer?.finish();
    this.close({});
    this.resolve(this.makeResult(finishReason));
    this.rejectStart(new AbortError('the generation ended before its first token'));
  }

  private fail(error: EngineError): void {
    if (this.ended !== undefined) return;
    this.close({ error });
    this.reject(error);
    this.rejectStart(error);
  }

  private close(ended: { error?: EngineError }): void {
    this.ended = ended;
    this.read?.signal?.removeEventListener('abort', this.onSignal);
    this.masks?.close();
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
        promptTokens: this.prompt.length,
        completionTokens: tokens.length,
        totalTokens: this.prompt.length + tokens.length,
        reasoningTokens: answer?.reasoningTokens ?? 0,
        cachedTokens: this.prefill.cachedTokens,
        draftedTokens: this.draftedTokens,
        acceptedTokens: this.acceptedTokens,
      },
      timings: {
        queueMs: this.prefill.queueMs,
        ttftMs: tokens.length > 0 ? this.firstTokenAt - this.startedAt : 0,
        totalMs: performance.now() - this.startedAt,
        tokensPerSecond: decodeMs > 0 ? ((tokens.length - 1) * 1000) / decodeMs : 0,
      },
      ...((this.read?.native.logprobs ?? -1) >= 0 ? { logprobs: answer?.logprobs ?? [] } : {}),
      ...((this.read?.native.promptLogprobs ?? -1) >= 0 ? { promptLogprobs: answer?.promptLogprobs ?? [] } : {}),
    };
  }
}
