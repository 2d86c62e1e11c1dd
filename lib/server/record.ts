/**
 * One request from arrival to end: what it came to is written once, to the log, the metrics, the span and the budgets of
 * its caller. Only counts and times are kept of what was asked and answered, unless the log was told to hold content.
 */
import type { OpenAIError, RequestObserver } from '../openai/index.js';
import type { Budgets, Claim } from './budgets.js';
import type { Caller } from './keys.js';
import { type Logger, stackFrames } from './log.js';
import type { Metrics } from './metrics.js';
import type { Span } from './tracing.js';

/** Where a request's facts go. */
export interface Sinks {
  metrics: Metrics;
  budgets: Budgets;
  log: Logger;
  logContent: boolean;
}

/** Asked for by machines, every few seconds. */
const PROBES: ReadonlySet<string> = new Set(['/health', '/metrics']);

export class RequestRecord implements RequestObserver {
  /** Aborted when the client goes away, or when the server gives up on what still runs. */
  readonly controller = new AbortController();
  caller: Caller | undefined;
  /** On its caller's concurrency. */
  claim: Claim | undefined;
  body: string | undefined;
  /** Called when the body turns out to ask for a stream. */
  onStream: () => void = () => {};

  private stream = false;
  private readonly arrivedAt = performance.now();
  /** When the first and the last token of each generation came. */
  private readonly arrivals: { first: number; last: number }[] = [];
  private readonly totals = { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
  private queueMs: number | undefined;
  private ttftMs: number | undefined;
  private readonly ends: string[] = [];
  private failure: { code: string; error: unknown } | undefined;
  private answer = '';
  private isClosed = false;

  constructor(
    readonly id: string,
    readonly route: string,
    private readonly sinks: Sinks,
    private readonly span: Span | undefined,
  ) {}

  planned({ choices, maxTokens, stream }: { choices: number; maxTokens: number | undefined; stream: boolean }): void {
    this.claim?.grow(choices);
    this.stream = stream;
    if (stream) this.onStream();
    this.sinks.metrics.choices.observe(choices);
    if (maxTokens !== undefined) this.sinks.metrics.maxTokens.observe(maxTokens);
  }

  started(facts: { promptTokens: number; cachedTokens: number; queueMs: number }): void {
    const { metrics } = this.sinks;
    this.totals.promptTokens += facts.promptTokens;
    this.totals.cachedTokens += facts.cachedTokens;
    this.queueMs ??= facts.queueMs;
    metrics.queue.observe(facts.queueMs / 1000);
    metrics.promptTokens.inc(facts.promptTokens);
    metrics.promptSize.observe(facts.promptTokens);
    this.charge(facts.promptTokens);
  }

  tokens(count: number, index: number): void {
    const { metrics } = this.sinks;
    const now = performance.now();
    const arrival = this.arrivals[index];
    if (arrival === undefined) {
      this.arrivals[index] = { first: now, last: now };
      this.ttftMs ??= now - this.arrivedAt;
      metrics.firstToken.observe((now - this.arrivedAt) / 1000);
    } else {
      metrics.betweenTokens.observe((now - arrival.last) / 1000 / count);
      arrival.last = now;
    }
    this.totals.completionTokens += count;
    metrics.generationTokens.inc(count);
    this.charge(count);
  }

  text(text: string): void {
    if (this.sinks.logContent) this.answer += text;
  }

  ended(end: { index: number; finishReason: string; completionTokens: number; queueMs: number }): void {
    const { metrics } = this.sinks;
    const { index, finishReason, completionTokens, queueMs } = end;
    this.ends.push(finishReason);
    metrics.success.inc({ finished_reason: finishReason });
    metrics.answerSize.observe(completionTokens);
    const arrival = this.arrivals[index];
    if (arrival === undefined) return;
    const whole = (arrival.last - this.arrivedAt) / 1000;
    const decode = (arrival.last - arrival.first) / 1000;
    metrics.whole.observe(whole);
    metrics.inference.observe(Math.max(0, whole - queueMs / 1000));
    metrics.prefill.observe(Math.max(0, whole - decode - queueMs / 1000));
    metrics.decode.observe(decode);
    if (completionTokens > 1) metrics.perToken.observe(decode / (completionTokens - 1));
  }

  fail(error: OpenAIError): void {
    const { code, type } = error.body.error;
    this.failure = { code: code ?? type, error: error.cause ?? error };
  }

  /** The response is out, or its reader is gone. */
  close(status: number): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.claim?.end();
    const { metrics, log, logContent } = this.sinks;
    const { promptTokens, cachedTokens, completionTokens } = this.totals;
    metrics.http.inc({ route: this.route, status: String(status) });
    const usage =
      this.queueMs === undefined ? {} : { promptTokens, cachedTokens, completionTokens, queueMs: rounded(this.queueMs) };
    const content = logContent ? { request: this.body, answer: this.answer } : {};
    const line = {
      request: this.id,
      key: this.caller?.id,
      route: this.route,
      status,
      stream: this.stream || undefined,
      ...usage,
      finish: this.ends.length > 0 ? this.ends.join(',') : undefined,
      ttftMs: this.ttftMs === undefined ? undefined : rounded(this.ttftMs),
      ms: rounded(performance.now() - this.arrivedAt),
      error: this.failure?.code,
      ...(status === 500 ? { at: stackFrames(this.failure?.error) } : {}),
      ...(logContent ? { content } : {}),
    };
    if (status === 500) log.error(line, 'request failed');
    else if (PROBES.has(this.route) && status < 500) log.debug(line, 'request');
    else log.info(line, 'request');
    this.span?.set({
      'http.response.status_code': status,
      'gen_ai.usage.input_tokens': this.queueMs === undefined ? undefined : promptTokens,
      'gen_ai.usage.output_tokens': this.queueMs === undefined ? undefined : completionTokens,
      'gen_ai.response.finish_reasons': this.ends.length > 0 ? this.ends.join(',') : undefined,
      'sigmoe.queue_ms': this.queueMs,
      'sigmoe.ttft_ms': this.ttftMs,
    });
    this.span?.end(status >= 500 ? (this.failure?.code ?? String(status)) : undefined);
  }

  private charge(tokens: number): void {
    if (this.caller !== undefined) this.sinks.budgets.charge(this.caller, tokens);
  }
}

function rounded(ms: number): number {
  return Math.round(ms * 10) / 10;
}
