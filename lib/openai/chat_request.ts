/** Reads a body of /v1/chat/completions: what to generate, and how the answer is to look. */
import type { GenerateRequest, SamplingOptions } from '../types.js';
import { chatPrompt, promptIds } from './chat_prompt.js';
import { badRequest } from './errors.js';
import type { Host } from './host.js';
import { newId, type TokenName, tokenName } from './parts.js';
import { type RequestContext, samplingOptions, seedOfChoice, WIRE_NAMES } from './sampling.js';
import { ChatBody } from './schema.js';
import { wantedForm } from './structured.js';
import { formWithTools, offersTools } from './tools.js';
import { BodyReader } from './validate.js';

export interface ChatPlan {
  requests: GenerateRequest[];
  id: string;
  stream: boolean;
  /** Tool calls are looked for in the text. */
  findsCalls: boolean;
  /** At most one call is shown. */
  oneCall: boolean;
  includeReasoning: boolean;
  logprobs: boolean;
  tokenName: TokenName;
  tokenIds: boolean;
  promptLogprobs: boolean;
  usage: 'none' | 'last' | 'every';
  /** What the caller calls the library's arguments. */
  wireNames: ReadonlyMap<string, string>;
}

const reader = new BodyReader(ChatBody);

export async function readChat(host: Host, given: unknown, context: RequestContext): Promise<ChatPlan> {
  const body = reader.read(given);
  host.checkModel(body.model);
  refuseMixtures(body);
  const wireNames = new Map(WIRE_NAMES);
  wireNames.set('maxTokens', body.max_completion_tokens === undefined ? 'max_tokens' : 'max_completion_tokens');
  wireNames.set('logprobs', 'top_logprobs');
  wireNames.set('prompt', 'messages');

  const sampling: SamplingOptions = samplingOptions(body, context, host.model.info.context - 1);
  sampling.maxTokens = body.max_completion_tokens ?? body.max_tokens;
  if (body.logprobs === true) sampling.logprobs = body.top_logprobs ?? 0;
  const { tool_choice: wish = 'auto', parallel_tool_calls: parallel = true } = body;
  const choice = typeof wish === 'string' ? wish : wish.function;
  const functions = (body.tools ?? []).map((tool) => tool.function);
  const offered = offersTools(functions, choice);
  const wanted = wantedForm(body);
  const form = offered ? formWithTools(wanted, functions, choice, parallel) : wanted;
  sampling.structured = form?.form;
  if (form !== undefined) wireNames.set('structured', form.field);

  const effort = body.reasoning_effort === undefined ? {} : { reasoning_effort: body.reasoning_effort };
  const rendered = await chatPrompt(host, given, body, { showTools: offered, variables: effort });
  const { n = 1 } = body;
  const prompt = n > 1 ? { prompt: await promptIds(host, rendered) } : rendered;
  const requests = Array.from({ length: n }, (_, i) => ({
    ...prompt,
    ...sampling,
    seed: seedOfChoice(body.seed, i),
  }));
  return {
    requests,
    id: newId('chatcmpl-', body.request_id ?? context.requestId),
    stream: body.stream ?? false,
    findsCalls: offered,
    oneCall: !parallel,
    includeReasoning: body.include_reasoning ?? true,
    logprobs: body.logprobs ?? false,
    tokenName: tokenName(body.return_tokens_as_token_ids),
    tokenIds: body.return_token_ids ?? false,
    promptLogprobs: body.prompt_logprobs !== undefined,
    usage: usageWish(body.stream_options),
    wireNames,
  };
}

export function usageWish(options: ChatBody['stream_options']): ChatPlan['usage'] {
  if (options?.include_usage !== true) return 'none';
  return options.continuous_usage_stats === true ? 'every' : 'last';
}

function refuseMixtures(body: ChatBody): void {
  const { max_tokens: older, max_completion_tokens: newer } = body;
  if (older !== undefined && newer !== undefined && older !== newer) {
    throw badRequest('max_tokens', 'max_tokens: differs from max_completion_tokens: send one of them');
  }
  if (body.top_logprobs !== undefined && body.logprobs !== true) {
    throw badRequest('top_logprobs', 'top_logprobs: needs "logprobs": true');
  }
  refuseStreamMixtures(body);
}

export function refuseStreamMixtures(body: Pick<ChatBody, 'stream' | 'stream_options' | 'prompt_logprobs'>): void {
  if (body.stream_options !== undefined && body.stream !== true) {
    throw badRequest('stream_options', 'stream_options: needs "stream": true');
  }
  if (body.prompt_logprobs !== undefined && body.stream === true) {
    throw badRequest('prompt_logprobs', 'prompt_logprobs: not with "stream": true');
  }
}
