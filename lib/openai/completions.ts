/** /v1/completions: text continued, for one prompt or several, whole or streamed. */
import type { GenerateRequest, GenerateResult, GenerationStart, TokenLogprob } from '../types.js';
import { refuseStreamMixtures, usageWish } from './chat_request.js';
import { badRequest } from './errors.js';
import type { Generations } from './generations.js';
import { type Host, seconds } from './host.js';
import {
  completionLogprobs,
  countsOf,
  finishReason,
  newId,
  promptLogprobs,
  type TokenName,
  tokenName,
  usageOf,
} from './parts.js';
import { type RequestContext, samplingOptions, seedOfChoice, WIRE_NAMES } from './sampling.js';
import { CompletionBody } from './schema.js';
import { wantedForm } from './structured.js';
import { BodyReader } from './validate.js';
import type { Completion, CompletionChoice, CompletionLogprobs, Usage } from './wire.js';

const DEFAULT_MAX_TOKENS = 16;

export interface CompletionPlan {
  requests: GenerateRequest[];
  /** The prompts as they were sent. */
  texts: (string | number[])[];
  id: string;
  stream: boolean;
  /** Choices per prompt. */
  choices: number;
  echo: boolean;
  /** `max_tokens: 0` with echo: only the prompt is shown. */
  onlyEcho: boolean;
  logprobs: boolean;
  promptLogprobs: boolean;
  tokenName: TokenName;
  tokenIds: boolean;
  usage: 'none' | 'last' | 'every';
  wireNames: ReadonlyMap<string, string>;
}

const reader = new BodyReader(CompletionBody);

export async function readCompletion(host: Host, given: unknown, context: RequestContext): Promise<CompletionPlan> {
  const body = reader.read(given);
  host.checkModel(body.model);
  refuseStreamMixtures(body);
  const { echo = false, n = 1, logprobs } = body;
  const onlyEcho = body.max_tokens === 0;
  if (onlyEcho && !echo) throw badRequest('max_tokens', 'max_tokens: 0 needs "echo": true');
  if (echo && body.stream && logprobs !== undefined) throw badRequest('echo', 'echo: not with "stream": true and logprobs');
  if (body.add_special_tokens !== undefined) checkSpecialTokens(host, body.add_special_tokens);

  const sampling = samplingOptions(body, context, host.model.info.context - 1);
  sampling.maxTokens = onlyEcho ? 1 : (body.max_tokens ?? DEFAULT_MAX_TOKENS);
  sampling.logprobs = logprobs;
  sampling.separateReasoning = false; // text is continued as it stands
  const asked = body.prompt_logprobs !== undefined;
  if (echo && logprobs !== undefined && !asked) sampling.promptLogprobs = logprobs;
  const wireNames = new Map(WIRE_NAMES);
  const form = wantedForm(body);
  sampling.structured = form?.form;
  if (form !== undefined) wireNames.set('structured', form.field);

  const texts = promptsOf(body.prompt);
  const requests: GenerateRequest[] = [];
  for (const text of texts) {
    const prompt = n > 1 && typeof text === 'string' ? await host.model.tokenizer.encodeAsync(text) : text;
    for (let i = 0; i < n; i++) requests.push({ ...sampling, prompt, seed: seedOfChoice(body.seed, i) });
  }
  return {
    requests,
    texts,
    id: newId('cmpl-', body.request_id ?? context.requestId),
    stream: body.stream ?? false,
    choices: n,
    echo,
    onlyEcho,
    logprobs: logprobs !== undefined,
    promptLogprobs: asked,
    tokenName: tokenName(body.return_tokens_as_token_ids),
    tokenIds: body.return_token_ids ?? false,
    usage: usageWish(body.stream_options),
    wireNames,
  };
}

/** Whether a prompt's special tokens are added is the tokenizer's setting; where it adds none, both answers are that. */
export function checkSpecialTokens(host: Host, wanted: boolean): void {
  if (wanted || host.model.tokenizer.encode('').length === 0) return;
  throw badRequest('add_special_tokens', 'add_special_tokens: this tokenizer always adds its own: send token ids instead');
}

function promptsOf(prompt: CompletionBody['prompt']): (string | number[])[] {
  if (typeof prompt === 'string') return [prompt];
  return typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as string[] | number[][]);
}

export async function wholeCompletion(host: Host, plan: CompletionPlan, generations: Generations): Promise<Completion> {
  const results = await generations.results();
  const choices = await Promise.all(
    results.map(async (result, index) => choiceOf(host, plan, result, index, await generations.started(index))),
  );
  return { ...frameOf(host, plan), choices, usage: totalOf(plan, results) };
}

function totalOf(plan: CompletionPlan, results: readonly GenerateResult[]): Usage {
  const counts = countsOf(results, plan.choices);
  return usageOf(plan.onlyEcho ? { ...counts, completionTokens: 0 } : counts);
}

function frameOf(host: Host, plan: CompletionPlan) {
  const object = 'text_completion' as const;
  return { id: plan.id, object, created: seconds(), model: host.name, system_fingerprint: host.fingerprint };
}

function choiceOf(
  host: Host,
  plan: CompletionPlan,
  result: GenerateResult,
  index: number,
  start: GenerationStart,
): CompletionChoice {
  const { tokenizer } = host.model;
  const prompt = plan.echo ? echoOf(host, plan, index, start) : '';
  const tokens = plan.onlyEcho ? [] : (result.logprobs ?? []);
  let logprobs: CompletionLogprobs | null = null;
  if (plan.logprobs) {
    const before = plan.echo ? promptTokensOf(host, start, result.promptLogprobs ?? []) : [];
    logprobs = completionLogprobs([...before, ...tokens], plan.tokenName, 0);
  }
  const choice: CompletionChoice = {
    index,
    text: plan.onlyEcho ? prompt : prompt + result.text,
    logprobs,
    finish_reason: plan.onlyEcho ? 'length' : finishReason(result.finishReason),
    stop_reason: plan.onlyEcho ? null : result.stopReason,
  };
  if (plan.promptLogprobs) choice.prompt_logprobs = promptLogprobs(result.promptLogprobs ?? [], tokenizer);
  if (plan.tokenIds) {
    choice.prompt_token_ids = [...start.promptTokens];
    choice.token_ids = plan.onlyEcho ? [] : result.tokens;
  }
  return choice;
}

/** The prompt as text: as it was sent, or decoded where it was ids or was cut. */
function echoOf(host: Host, plan: CompletionPlan, index: number, start: GenerationStart): string {
  const request = plan.requests[index];
  const text = plan.texts[Math.floor(index / plan.choices)];
  if (typeof text === 'string' && request?.truncatePromptTokens === undefined) return text;
  const decoder = host.model.tokenizer.createDecoder({ skipSpecial: request?.skipSpecialTokens ?? true });
  return decoder.push(start.promptTokens) + decoder.flush();
}

function promptTokensOf(host: Host, start: GenerationStart, scores: readonly (TokenLogprob | null)[]) {
  return scores.map((score, i) => {
    const id = start.promptTokens[i] ?? 0;
    return score ?? { id, bytes: host.model.tokenizer.bytesOf(id), logprob: null, top: null };
  });
}

export async function* streamedCompletion(
  host: Host,
  plan: CompletionPlan,
  generations: Generations,
): AsyncGenerator<Completion, void, undefined> {
  const frame = frameOf(host, plan);
  const results: GenerateResult[] = [];
  const opened = new Map<number, { start: GenerationStart; completionTokens: number; at: number }>();
  for await (const piece of generations.pieces()) {
    const { index } = piece;
    const choice: CompletionChoice = { index, text: '', logprobs: null, finish_reason: null, stop_reason: null };
    let state = opened.get(index);
    if (state === undefined) {
      state = { start: await generations.started(index), completionTokens: 0, at: 0 };
      opened.set(index, state);
      if (plan.echo) choice.text = echoOf(host, plan, index, state.start);
      if (plan.tokenIds) choice.prompt_token_ids = [...state.start.promptTokens];
    }
    if ('result' in piece) {
      results[index] = piece.result;
      choice.finish_reason = plan.onlyEcho ? 'length' : finishReason(piece.result.finishReason);
      choice.stop_reason = plan.onlyEcho ? null : piece.result.stopReason;
    } else if (!plan.onlyEcho) {
      const { text, tokens, logprobs } = piece.chunk;
      state.completionTokens += tokens.length;
      choice.text += text;
      if (plan.logprobs && logprobs !== undefined) {
        choice.logprobs = completionLogprobs(logprobs, plan.tokenName, state.at);
        state.at += choice.text.length;
      }
      if (plan.tokenIds) choice.token_ids = tokens;
    }
    if (choice.text === '' && choice.finish_reason === null && !(plan.logprobs || plan.tokenIds)) continue;
    const { promptTokens, cachedTokens } = state.start;
    const counts = {
      promptTokens: promptTokens.length,
      cachedTokens,
      completionTokens: state.completionTokens,
      reasoningTokens: 0,
    };
    yield {
      ...frame,
      choices: [choice],
      ...(plan.usage === 'none' ? {} : { usage: plan.usage === 'every' ? usageOf(counts) : null }),
    };
  }
  if (plan.usage !== 'none') yield { ...frame, choices: [], usage: totalOf(plan, results) };
}
