/**
 * /v1/chat/completions, streamed. A choice's first chunk, with the role, comes with its first output and not before; then
 * what was generated; then a chunk with the reason it ended. Usage, when asked for, comes last.
 */
import type { Chunk, GenerateResult, GenerationStart } from '../types.js';
import { CallFinder } from './call_finder.js';
import type { ChatPlan } from './chat_request.js';
import type { Generations } from './generations.js';
import { type Host, seconds } from './host.js';
import { chatLogprobs, countsOf, finishReason, usageOf } from './parts.js';
import type { ChatChunkChoice, ChatCompletionChunk, ChatDelta, Usage } from './wire.js';

export async function* streamedChat(
  host: Host,
  plan: ChatPlan,
  generations: Generations,
): AsyncGenerator<ChatCompletionChunk, void, undefined> {
  const frame = {
    id: plan.id,
    object: 'chat.completion.chunk' as const,
    created: seconds(),
    model: host.name,
    system_fingerprint: host.fingerprint,
  };
  const chunkOf = (choice: ChatChunkChoice, from: StreamedChoice): ChatCompletionChunk => {
    const chunk: ChatCompletionChunk = { ...frame, choices: [choice] };
    if (plan.usage !== 'none') chunk.usage = plan.usage === 'every' ? from.usage : null;
    return chunk;
  };
  const choices = plan.requests.map((_, index) => new StreamedChoice(plan, index));
  const results: GenerateResult[] = [];
  for await (const piece of generations.pieces()) {
    const choice = choices[piece.index];
    if (choice === undefined) continue;
    if (!choice.isOpen) {
      const start = await generations.started(piece.index);
      const first = chunkOf(choice.open(start), choice);
      yield plan.tokenIds ? { ...first, prompt_token_ids: [...start.promptTokens] } : first;
    }
    if ('result' in piece) {
      results[piece.index] = piece.result;
      for (const last of choice.close(piece.result)) yield chunkOf(last, choice);
    } else {
      const next = choice.write(piece.chunk);
      if (next !== undefined) yield chunkOf(next, choice);
    }
  }
  if (plan.usage !== 'none') yield { ...frame, choices: [], usage: usageOf(countsOf(results, results.length)) };
}

/** One choice as it grows. */
class StreamedChoice {
  isOpen = false;
  private readonly calls: CallFinder;
  private counts = { promptTokens: 0, completionTokens: 0, cachedTokens: 0, reasoningTokens: 0 };

  constructor(
    private readonly plan: ChatPlan,
    private readonly index: number,
  ) {
    this.calls = new CallFinder(plan.findsCalls, plan.oneCall);
  }

  get usage(): Usage {
    return usageOf(this.counts);
  }

  open({ promptTokens, cachedTokens }: GenerationStart): ChatChunkChoice {
    this.isOpen = true;
    this.counts = { ...this.counts, promptTokens: promptTokens.length, cachedTokens };
    return this.choice({ role: 'assistant', content: '' });
  }

  /** Undefined when there is nothing to show of this chunk yet. */
  write({ text, reasoning, tokens, logprobs }: Chunk): ChatChunkChoice | undefined {
    this.counts.completionTokens += tokens.length;
    const delta: ChatDelta = {};
    if (reasoning !== '' && this.plan.includeReasoning) {
      delta.reasoning = reasoning;
      delta.reasoning_content = reasoning;
    }
    const found = this.calls.push(text);
    if (found.text !== '') delta.content = found.text;
    if (found.calls.length > 0) delta.tool_calls = found.calls;
    const shows = found.text !== '' || found.calls.length > 0 || delta.reasoning !== undefined;
    if (!shows && !(this.plan.logprobs || this.plan.tokenIds)) return undefined;
    const choice = this.choice(delta);
    if (this.plan.logprobs && logprobs !== undefined) choice.logprobs = chatLogprobs(logprobs, this.plan.tokenName);
    if (this.plan.tokenIds) choice.token_ids = tokens;
    return choice;
  }

  /** What was held back, then the end. */
  close(result: GenerateResult): ChatChunkChoice[] {
    this.counts = result.usage;
    const { text, calls } = this.calls.flush();
    const ends =
      this.calls.found.length > 0 && result.finishReason === 'stop' ? 'tool_calls' : finishReason(result.finishReason);
    const last = { ...this.choice({}), finish_reason: ends, stop_reason: result.stopReason };
    if (text === '' && calls.length === 0) return [last];
    return [
      this.choice({ ...(text === '' ? {} : { content: text }), ...(calls.length > 0 ? { tool_calls: calls } : {}) }),
      last,
    ];
  }

  private choice(delta: ChatDelta): ChatChunkChoice {
    return { index: this.index, delta, logprobs: null, finish_reason: null };
  }
}
