/** From the sampling fields of a body to the library's options: the names of the wire, and the values it spells otherwise. */
import type { SamplingOptions } from '../types.js';
import { badRequest } from './errors.js';
import type { RequestFields, SamplingFields } from './schema.js';

/** What stands around a request: who asks, and how it may end early. */
export interface RequestContext {
  signal?: AbortSignal | undefined;
  /** Identifies the request in the answer's id; random when absent. */
  requestId?: string | undefined;
  /** Keeps the prefix cache of this caller apart from that of others. */
  cacheSalt?: string | undefined;
  observer?: RequestObserver | undefined;
}

/** Hears of a request's progress: for metrics, logs and budgets. */
export interface RequestObserver {
  /** The body was read and can be taken. */
  planned?(plan: { choices: number; maxTokens: number | undefined; stream: boolean }): void;
  /** A prompt was computed. */
  started?(facts: { promptTokens: number; cachedTokens: number; queueMs: number }): void;
  /** Some tokens of a generation arrived together. */
  tokens?(count: number, index: number): void;
  /** Text as the caller sees it; for a log that was asked to hold it. */
  text?(text: string): void;
  /** A generation ended by itself. */
  ended?(end: { index: number; finishReason: string; completionTokens: number; queueMs: number }): void;
}

/** The library's names whose wire names are not just another spelling. */
export const WIRE_NAMES: readonly (readonly [string, string])[] = [
  ['includeStopInOutput', 'include_stop_str_in_output'],
  ['variables', 'chat_template_kwargs'],
];

const MAX_BIASES = 4096;

export function samplingOptions(body: SamplingFields & RequestFields, context: RequestContext, room: number): SamplingOptions {
  return {
    temperature: body.temperature,
    topP: body.top_p,
    topK: body.top_k === -1 ? 0 : body.top_k,
    minP: body.min_p,
    repetitionPenalty: body.repetition_penalty,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    logitBias: body.logit_bias && biasOf(body.logit_bias),
    minTokens: body.min_tokens,
    stop: body.stop,
    stopTokenIds: body.stop_token_ids,
    ignoreEos: body.ignore_eos,
    skipSpecialTokens: body.skip_special_tokens,
    includeStopInOutput: body.include_stop_str_in_output,
    allowedTokenIds: body.allowed_token_ids,
    badWords: body.bad_words,
    promptLogprobs: body.prompt_logprobs,
    thinkingTokenBudget: body.thinking_token_budget,
    priority: body.priority,
    cacheSalt: saltOf(context.cacheSalt, body.cache_salt),
    truncatePromptTokens: body.truncate_prompt_tokens === -1 ? room : body.truncate_prompt_tokens,
    signal: context.signal,
  };
}

function biasOf(bias: Record<string, unknown>): Map<number, number> {
  const entries = Object.entries(bias);
  if (entries.length > MAX_BIASES) {
    throw badRequest('logit_bias', `logit_bias: expected at most ${MAX_BIASES} tokens, found ${entries.length}`);
  }
  return new Map(
    entries.map(([key, value]) => {
      if (/^\d{1,9}$/.test(key) && typeof value === 'number') return [Number(key), value];
      throw badRequest('logit_bias', 'logit_bias: expected an object from token ids to numbers');
    }),
  );
}

/** A salt of the request's own divides the cache of its caller further; it opens no other's. */
function saltOf(caller: string | undefined, own: string | undefined): string | undefined {
  if (caller === undefined || own === undefined) return caller ?? own;
  return JSON.stringify([caller, own]);
}

/**
 * The seed of each choice: the request's for the first, so that one choice with it is that same answer; for the others,
 * numbers that follow from it and lie far apart.
 */
export function seedOfChoice(seed: number | undefined, choice: number): bigint | undefined {
  if (seed === undefined) return undefined;
  return BigInt.asUintN(64, BigInt(seed) + BigInt(choice) * 0x9e3779b97f4a7c15n);
}
