/** /v1/chat/completions: the answer whole. Streamed it is in chat_stream.ts. */
import type { GenerateResult } from '../types.js';
import { CallFinder } from './call_finder.js';
import type { ChatPlan } from './chat_request.js';
import type { Generations } from './generations.js';
import { type Host, seconds } from './host.js';
import { chatLogprobs, countsOf, finishReason, promptLogprobs, usageOf } from './parts.js';
import type { ChatChoice, ChatCompletion, ChatMessageOut } from './wire.js';

export async function wholeChat(host: Host, plan: ChatPlan, generations: Generations): Promise<ChatCompletion> {
  const results = await generations.results();
  const completion: ChatCompletion = {
    id: plan.id,
    object: 'chat.completion',
    created: seconds(),
    model: host.name,
    choices: results.map((result, index) => choiceOf(plan, result, index)),
    usage: usageOf(countsOf(results, results.length)),
    system_fingerprint: host.fingerprint,
    service_tier: null,
  };
  const scores = results[0]?.promptLogprobs;
  if (plan.promptLogprobs) completion.prompt_logprobs = promptLogprobs(scores ?? [], host.model.tokenizer);
  if (plan.tokenIds) completion.prompt_token_ids = [...(await generations.started(0)).promptTokens];
  return completion;
}

function choiceOf(plan: ChatPlan, result: GenerateResult, index: number): ChatChoice {
  const calls = new CallFinder(plan.findsCalls, plan.oneCall);
  const text = calls.push(result.text).text + calls.flush().text;
  const message: ChatMessageOut = {
    role: 'assistant',
    content: calls.found.length > 0 && text === '' ? null : text,
    refusal: null,
  };
  if (plan.includeReasoning && result.reasoning !== '') {
    message.reasoning = result.reasoning;
    message.reasoning_content = result.reasoning;
  }
  if (calls.found.length > 0) message.tool_calls = calls.found;
  const choice: ChatChoice = {
    index,
    message,
    logprobs: plan.logprobs ? chatLogprobs(result.logprobs ?? [], plan.tokenName) : null,
    finish_reason: calls.found.length > 0 && result.finishReason === 'stop' ? 'tool_calls' : finishReason(result.finishReason),
    stop_reason: result.stopReason,
  };
  if (plan.tokenIds) choice.token_ids = result.tokens;
  return choice;
}
