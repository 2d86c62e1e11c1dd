/** Parts that answers of several endpoints share: usage, log-probabilities, ends, ids. */
import { randomBytes } from 'node:crypto';
import type { Tokenizer } from '../tokenizer.js';
import type { GenerateResult, TokenLogprob } from '../types.js';
import type { ChatLogprobs, CompletionLogprobs, FinishReason, PromptLogprobs, TopLogprob, Usage } from './wire.js';

/** JSON has no minus infinity; vLLM writes this. */
const LEAST_LOGPROB = -9999;

export interface Counts {
  promptTokens: number;
  completionTokens: number;
  cachedTokens: number;
  reasoningTokens: number;
  /** Of speculation; absent or 0 where nothing was drafted. */
  draftedTokens?: number;
  acceptedTokens?: number;
}

export function usageOf(counts: Counts): Usage {
  const { draftedTokens = 0, acceptedTokens = 0 } = counts;
  const predictions = {
    accepted_prediction_tokens: acceptedTokens,
    rejected_prediction_tokens: draftedTokens - acceptedTokens,
  };
  return {
    prompt_tokens: counts.promptTokens,
    completion_tokens: counts.completionTokens,
    total_tokens: counts.promptTokens + counts.completionTokens,
    prompt_tokens_details: { cached_tokens: counts.cachedTokens },
    completion_tokens_details: { reasoning_tokens: counts.reasoningTokens, ...(draftedTokens > 0 ? predictions : {}) },
  };
}

/** Sums over generations, of which each `choices` in a row share one prompt that counts once. */
export function countsOf(results: readonly GenerateResult[], choices: number): Counts {
  const counts = {
    promptTokens: 0,
    completionTokens: 0,
    cachedTokens: 0,
    reasoningTokens: 0,
    draftedTokens: 0,
    acceptedTokens: 0,
  };
  for (const [i, { usage }] of results.entries()) {
    counts.completionTokens += usage.completionTokens;
    counts.reasoningTokens += usage.reasoningTokens;
    counts.draftedTokens += usage.draftedTokens;
    counts.acceptedTokens += usage.acceptedTokens;
    if (i % choices !== 0) continue;
    counts.promptTokens += usage.promptTokens;
    counts.cachedTokens += usage.cachedTokens;
  }
  return counts;
}

export function finishReason(reason: GenerateResult['finishReason']): FinishReason {
  return reason === 'deadline' ? 'abort' : reason;
}

export function newId(prefix: string, requestId?: string): string {
  return prefix + (requestId ?? randomBytes(16).toString('hex'));
}

/** Tokens as text: their spelling, or `token_id:N` for callers that must tell apart tokens of the same text. */
export type TokenName = (id: number, bytes: Uint8Array) => string;

const decoder = new TextDecoder();

export function tokenName(asIds: boolean | undefined): TokenName {
  return asIds ? (id) => `token_id:${id}` : (_id, bytes) => decoder.decode(bytes);
}

function finite(logprob: number): number {
  return Number.isFinite(logprob) ? Math.max(logprob, LEAST_LOGPROB) : LEAST_LOGPROB;
}

export function chatLogprobs(tokens: readonly TokenLogprob[], name: TokenName): ChatLogprobs {
  const entry = ({ id, bytes, logprob }: Omit<TokenLogprob, 'top'>): TopLogprob => ({
    token: name(id, bytes),
    logprob: finite(logprob),
    bytes: [...bytes],
  });
  return { content: tokens.map((token) => ({ ...entry(token), top_logprobs: token.top.map(entry) })), refusal: null };
}

/** `offset`: where in the choice's text the first of these tokens begins. */
export function completionLogprobs(
  tokens: readonly (TokenLogprob | { id: number; bytes: Uint8Array; logprob: null; top: null })[],
  name: TokenName,
  offset: number,
): CompletionLogprobs {
  const result: CompletionLogprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
  let at = offset;
  for (const { id, bytes, logprob, top } of tokens) {
    result.tokens.push(name(id, bytes));
    result.token_logprobs.push(logprob === null ? null : finite(logprob));
    result.top_logprobs?.push(
      top === null ? null : Object.fromEntries(top.map((other) => [name(other.id, other.bytes), finite(other.logprob)])),
    );
    result.text_offset.push(at);
    at += decoder.decode(bytes).length;
  }
  return result;
}

export function promptLogprobs(entries: readonly (TokenLogprob | null)[], tokenizer: Tokenizer): PromptLogprobs {
  const text = (id: number) => decoder.decode(tokenizer.bytesOf(id));
  return entries.map((entry) => {
    if (entry === null) return null;
    const named = new Map<number, { logprob: number; rank: number | null; decoded_token: string }>();
    named.set(entry.id, { logprob: finite(entry.logprob), rank: null, decoded_token: text(entry.id) });
    for (const [i, { id, logprob }] of entry.top.entries()) {
      named.set(id, { logprob: finite(logprob), rank: i + 1, decoded_token: text(id) });
    }
    return Object.fromEntries(named);
  });
}
