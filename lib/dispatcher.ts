/** Hands what one engine step produced to the requests it belongs to: the one listener of a model's events. */
import { DisposedError, type EngineError, errorFromCode, InternalError, toEngineError } from './errors.js';
import { Finish, MAX_LOGPROBS, type NativeGenerateRequest, type NativeModel, type NativeStepEvent } from './native.js';

export interface SampledToken {
  id: number;
  logprob: number;
  /** Most likely first; empty when the request asked for no log-probabilities. */
  top: { id: number; logprob: number }[];
}

/** The receiving end of one request. After `finished` or `failed` nothing more comes. */
export interface RequestListener {
  token?(token: SampledToken): void;
  /** The step's tokens have all been handed over. */
  stepEnded?(): void;
  logits?(values: Float32Array): void;
  finished(reason: 'stop' | 'length'): void;
  failed(error: EngineError): void;
}

export class Dispatcher {
  private readonly listeners = new Map<number, RequestListener>();

  constructor(private readonly model: NativeModel) {
    model.listen((event) => this.dispatch(event));
  }

  submit(request: NativeGenerateRequest, listener: RequestListener): number {
    return this.add(() => this.model.submit(request), listener);
  }

  submitLogits(tokens: Int32Array, mtp: boolean, listener: RequestListener): number {
    return this.add(() => this.model.submitLogits(tokens, mtp), listener);
  }

  /** Ends a request at once: its listener hears nothing more. */
  drop(request: number): void {
    if (this.listeners.delete(request)) this.model.abort(request);
  }

  /** Fails what is left, after the last event of a disposed model. */
  close(): void {
    for (const listener of this.listeners.values()) listener.failed(new DisposedError());
    this.listeners.clear();
  }

  private add(submit: () => number, listener: RequestListener): number {
    try {
      const request = submit();
      this.listeners.set(request, listener);
      return request;
    } catch (error) {
      throw toEngineError(error);
    }
  }

  private dispatch(event: NativeStepEvent): void {
    const touched = new Set<RequestListener>();
    for (const { request, values } of event.logits) this.listeners.get(request)?.logits?.(values);
    for (const [i, request] of event.requests.entries()) {
      // A listener may drop its request at any token; what the step holds of it beyond that is not its output.
      const listener = this.listeners.get(request);
      if (listener === undefined) continue;
      const id = event.tokens[i] ?? -1;
      if (id >= 0) listener.token?.(tokenAt(event, i, id));
      touched.add(listener);
      const finish = event.finish[i] ?? Finish.none;
      if (finish === Finish.none || !this.listeners.delete(request)) continue;
      this.end(listener, request, finish, event);
    }
    for (const listener of touched) listener.stepEnded?.();
  }

  private end(listener: RequestListener, request: number, finish: number, event: NativeStepEvent): void {
    if (finish === Finish.stop) listener.finished('stop');
    else if (finish === Finish.length) listener.finished('length');
    // Requests that lib aborts have been dropped before; only a model that shuts down aborts on its own.
    else if (finish === Finish.aborted) listener.failed(new DisposedError());
    else listener.failed(failureOf(event, request));
  }
}

function failureOf(event: NativeStepEvent, request: number): EngineError {
  const failure = event.failures.find((entry) => entry.request === request);
  if (failure === undefined) return new InternalError(`request ${request} failed without a reason`);
  return errorFromCode(failure.code, failure.message, failure.hint);
}

function tokenAt(event: NativeStepEvent, i: number, id: number): SampledToken {
  const top: SampledToken['top'] = [];
  for (let k = i * MAX_LOGPROBS; k < (i + 1) * MAX_LOGPROBS; k++) {
    const alternative = event.topIds?.[k] ?? -1;
    if (alternative < 0) break;
    top.push({ id: alternative, logprob: event.topLogprobs?.[k] ?? Number.NaN });
  }
  return { id, logprob: event.logprobs?.[i] ?? Number.NaN, top };
}
