/** /v1/responses: the answer as OpenAI's response object, whole or as its events. */
import type { GenerateResult } from '../types.js';
import type { Generations } from './generations.js';
import { type Host, seconds } from './host.js';
import { ResponseOutput } from './responses_output.js';
import type { ResponsePlan } from './responses_request.js';
import type { LifeEvent, OutputEvent, OutputItem, ResponseEvent, ResponseObject } from './responses_wire.js';

export async function wholeResponse(host: Host, plan: ResponsePlan, generations: Generations): Promise<ResponseObject> {
  const output = new ResponseOutput(plan);
  let result: GenerateResult | undefined;
  for await (const piece of generations.pieces()) {
    if ('result' in piece) {
      result = piece.result;
      output.close(result);
    } else output.write(piece.chunk);
  }
  return responseObject(host, plan, seconds(), output.items, result);
}

/** Events are numbered in their order; the first come with the first output, as an error before it has a status. */
export async function* streamedResponse(
  host: Host,
  plan: ResponsePlan,
  generations: Generations,
): AsyncGenerator<ResponseEvent, void, undefined> {
  const output = new ResponseOutput(plan);
  const created = seconds();
  let number = 0;
  const numbered = (event: OutputEvent | LifeEvent): ResponseEvent => ({ ...event, sequence_number: number++ });
  for await (const piece of generations.pieces()) {
    if (number === 0) {
      const response = responseObject(host, plan, created, []);
      yield numbered({ type: 'response.created', response });
      yield numbered({ type: 'response.in_progress', response });
    }
    const events = 'result' in piece ? output.close(piece.result) : output.write(piece.chunk);
    for (const event of events) yield numbered(event);
    if (!('result' in piece)) continue;
    const response = responseObject(host, plan, created, output.items, piece.result);
    yield numbered({ type: response.status === 'completed' ? 'response.completed' : 'response.incomplete', response });
  }
}

function responseObject(
  host: Host,
  plan: ResponsePlan,
  created: number,
  output: OutputItem[],
  result?: GenerateResult,
): ResponseObject {
  const { body } = plan;
  const cut = result !== undefined && result.finishReason !== 'stop';
  return {
    id: plan.id,
    object: 'response',
    created_at: created,
    completed_at: result === undefined ? null : seconds(),
    status: result === undefined ? 'in_progress' : cut ? 'incomplete' : 'completed',
    background: false,
    error: null,
    incomplete_details: cut ? { reason: 'max_output_tokens' } : null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    metadata: body.metadata ?? {},
    model: host.name,
    output,
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: null,
    reasoning: { effort: body.reasoning?.effort ?? null, summary: null },
    service_tier: null,
    store: false,
    temperature: body.temperature ?? null,
    text: { format: body.text?.format ?? { type: 'text' } },
    tool_choice: body.tool_choice ?? 'auto',
    tools: body.tools ?? [],
    top_logprobs: body.top_logprobs ?? 0,
    top_p: body.top_p ?? null,
    truncation: 'disabled',
    usage: result === undefined ? null : usageOf(result),
    user: body.user ?? null,
  };
}

function usageOf({ usage }: GenerateResult): NonNullable<ResponseObject['usage']> {
  return {
    input_tokens: usage.promptTokens,
    input_tokens_details: { cached_tokens: usage.cachedTokens },
    output_tokens: usage.completionTokens,
    output_tokens_details: { reasoning_tokens: usage.reasoningTokens },
    total_tokens: usage.totalTokens,
  };
}
