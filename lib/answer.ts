/** From sampled tokens to the text a caller sees: bytes, then stop strings, then reasoning apart from the answer. */
import { ReasoningParser } from './chat/reasoning.js';
import type { SampledToken } from './dispatcher.js';
import type { ReadRequest } from './request_options.js';
import { StopStrings } from './text/stop_strings.js';
import type { Tokenizer } from './tokenizer.js';
import type { Chunk, GenerateResult, TokenLogprob } from './types.js';

export class Answer {
  readonly tokens: number[] = [];
  readonly logprobs: TokenLogprob[] = [];
  /** One per prompt token that was scored; null for the first, which nothing comes before. */
  readonly promptLogprobs: (TokenLogprob | null)[] = [];
  text = '';
  reasoning = '';
  reasoningTokens = 0;
  stopReason: GenerateResult['stopReason'] = null;
  private fresh: Chunk = emptyChunk();

  private readonly decoder: ReturnType<Tokenizer['createAnswerDecoder']>;
  private readonly stops: StopStrings;
  private readonly parser: ReasoningParser;
  private readonly stopIds: ReadonlySet<number>;

  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly request: ReadRequest,
    opensReasoning: boolean,
  ) {
    this.decoder = tokenizer.createAnswerDecoder(request.skipSpecialTokens);
    this.stops = new StopStrings(request.stops, request.includeStopInOutput);
    this.parser = new ReasoningParser(opensReasoning);
    this.stopIds = new Set(request.native.stopIds);
    if (request.native.promptLogprobs >= 0) this.promptLogprobs.push(null);
  }

  get isReasoning(): boolean {
    return this.parser.isReasoning;
  }

  /** Adds a token; true when it completed a stop string, which ends the answer. */
  push(sampled: SampledToken): boolean {
    const { id } = sampled;
    this.tokens.push(id);
    this.fresh.tokens.push(id);
    if (this.request.native.logprobs >= 0) this.pushLogprob(sampled);
    // A stop token ends the answer without being part of its text, whatever characters it stands for.
    const ends = this.stopIds.has(id);
    if (ends) this.stopReason = id;
    if (ends && !this.request.includeStopInOutput) return false;

    const wasReasoning = this.parser.isReasoning;
    const { text, match } = this.stops.push(this.decoder.push(id), this.tokens.length >= this.request.native.minTokens);
    this.read(text);
    if (wasReasoning || this.parser.isReasoning) this.reasoningTokens = this.tokens.length;
    if (match === undefined) return false;
    this.stopReason = match.stop;
    return true;
  }

  /** Lets out what was held back. After a stop string nothing is. */
  finish(): void {
    if (typeof this.stopReason !== 'string') {
      const { text } = this.stops.push(this.decoder.flush(), false);
      this.read(text + this.stops.flush());
    }
    const rest = this.parser.flush();
    if (this.request.separateReasoning) this.show(rest);
  }

  /** What came since the last call; undefined when there is nothing. */
  take(): Chunk | undefined {
    const chunk = this.fresh;
    if (chunk.tokens.length === 0 && chunk.text === '' && chunk.reasoning === '') return undefined;
    this.fresh = emptyChunk();
    return chunk;
  }

  private read(text: string): void {
    const part = this.parser.push(text);
    this.show(this.request.separateReasoning ? part : { text, reasoning: '' });
  }

  private show({ text, reasoning }: { text: string; reasoning: string }): void {
    this.text += text;
    this.reasoning += reasoning;
    this.fresh.text += text;
    this.fresh.reasoning += reasoning;
  }

  /** The score of the prompt's next token, in order. */
  pushPromptScore(sampled: SampledToken): void {
    this.promptLogprobs.push(this.logprobOf(sampled, this.request.native.promptLogprobs));
  }

  private logprobOf({ id, logprob, top }: SampledToken, alternatives: number): TokenLogprob {
    const bytesOf = (token: number) => this.tokenizer.bytesOf(token);
    const best = top
      .slice(0, alternatives)
      .map((token) => ({ id: token.id, bytes: bytesOf(token.id), logprob: token.logprob }));
    return { id, bytes: bytesOf(id), logprob, top: best };
  }

  private pushLogprob(sampled: SampledToken): void {
    const entry = this.logprobOf(sampled, this.request.native.logprobs);
    this.logprobs.push(entry);
    this.fresh.logprobs ??= [];
    this.fresh.logprobs.push(entry);
  }
}

function emptyChunk(): Chunk {
  return { text: '', reasoning: '', tokens: [] };
}
