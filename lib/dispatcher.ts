/** Hands what one engine step produced to the requests it belongs to: the one listener of a model's events. */
import { DeviceError, DisposedError, type EngineError, errorFromCode, InternalError, toEngineError } from './errors.js';
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
  /** The step's tokens have all been handed over. `drafts`: of a masked request, what is guessed to follow them. */
  stepEnded?(drafts: readonly number[]): void;
  /** The prompt is computed; the first token follows. */
  started?(start: { cachedTokens: number; queueMs: number }): void;
  /** Scores of the prompt's tokens, in order from the second on. */
  promptScore?(token: Omit<SampledToken, 'id'>): void;
  logits?(values: Float32Array): void;
  /** Drafts that the step checked; those accepted are among its tokens. */
  drafts?(checked: { drafted: number; accepted: number }): void;
  finished(reason: 'stop' | 'length' | 'deadline'): void;
  failed(error: EngineError): void;
}

const ALLOW_ALL = new Int32Array(0);

export class Dispatcher {
  /** The device error that broke the model; every later request fails, too. */
  failure: DeviceError | undefined;
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

  /**
   * What the masked request may sample as its token number `position`, and as those behind each of its drafts; undefined
   * allows everything and checks no draft.
   */
  setMasks(request: number, position: number, masks: Int32Array | undefined): void {
    if (this.listeners.has(request)) this.model.setMasks(request, position, masks ?? ALLOW_ALL);
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
      throw this.noted(toEngineError(error));
    }
  }

  private noted(error: EngineError): EngineError {
    if (error instanceof DeviceError) this.failure ??= error;
    return error;
  }

  private dispatch(event: NativeStepEvent): void {
    const touched = new Map<RequestListener, number>();
    for (const scores of event.promptLogprobs) {
      for (const [i, logprob] of scores.logprobs.entries()) {
        this.listeners.get(scores.request)?.promptScore?.({ logprob, top: topAt(scores.topIds, scores.topLogprobs, i) });
      }
    }
    for (const { request, ...start } of event.starts) this.listeners.get(request)?.started?.(start);
    for (const { request, ...checked } of event.drafts) this.listeners.get(request)?.drafts?.(checked);
    for (const { request, values } of event.logits) this.listeners.get(request)?.logits?.(values);
    for (const [i, request] of event.requests.entries()) {
      // A listener may drop its request at any token; what the step holds of it beyond that is not its output.
      const listener = this.listeners.get(request);
      if (listener === undefined) continue;
      const id = event.tokens[i] ?? -1;
      if (id >= 0) listener.token?.(tokenAt(event, i, id));
      touched.set(listener, request);
      const finish = event.finish[i] ?? Finish.none;
      if (finish === Finish.none || !this.listeners.delete(request)) continue;
      this.end(listener, request, finish, event);
    }
    const drafts = new Map(event.proposals.map(({ request, tokens }) => [request, [...tokens]]));
    for (const [listener, request] of touched) listener.stepEnded?.(drafts.get(request) ?? []);
  }

  private end(listener: RequestListener, request: number, finish: number, event: NativeStepEvent): void {
    if (finish === Finish.stop) listener.finished('stop');
    else if (finish === Finish.length) listener.finished('length');
    else if (finish === Finish.deadline) listener.finished('deadline');
    // Requests that lib aborts have been dropped before; only a model that shuts down aborts on its own.
    else if (finish === Finish.aborted) listener.failed(new DisposedError());
    else listener.failed(this.noted(failureOf(event, request)));
  }
}

function failureOf(event: NativeStepEvent, request: number): EngineError {
  const failure = event.failures.find((entry) => entry.request === request);
  if (failure === undefined) return new InternalError(`request ${request} failed without a reason`);
  return errorFromCode(failure.code, failure.message, failure.hint);
}

function tokenAt(event: NativeStepEvent, i: number, id: number): SampledToken {
  return { id, logprob: event.logprobs?.[i] ?? Number.NaN, top: topAt(event.topIds, event.topLogprobs, i) };
}

function topAt(ids: Int32Array | undefined, logprobs: Float32Array | undefined, row: number): SampledToken['top'] {
  const top: SampledToken['top'] = [];
  for (let k = row * MAX_LOGPROBS; k < (row + 1) * MAX_LOGPROBS; k++) {
    const id = ids?.[k] ?? -1;
    if (id < 0) break;
    top.push({ id, logprob: logprobs?.[k] ?? Number.NaN });
  }
  return top;
}
