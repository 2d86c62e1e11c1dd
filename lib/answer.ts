/** From sampled tokens to the text a caller sees: bytes, then stop strings, then reasoning apart from the answer. */
import { ReasoningParser } from './chat/reasoning.js';
import type { SampledToken } from './dispatcher.js';
import type { ReadRequest } from './options.js';
import { StopStrings } from './text/stop_strings.js';
import type { Tokenizer } from './tokenizer.js';
import type { Chunk, GenerateResult, TokenLogprob } from './types.js';

export class Answer {
  readonly tokens: number[] = [];
  readonly logprobs: TokenLogprob[] = [];
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
    this.show(this.parser.push(text));
    if (wasReasoning || this.parser.isReasoning) this.reasoningTokens = this.tokens.length;
    if (match === undefined) return false;
    this.stopReason = match.stop;
    return true;
  }

  /** Lets out what was held back. After a stop string nothing is. */
  finish(): void {
    if (typeof this.stopReason !== 'string') {
      const { text } = this.stops.push(this.decoder.flush(), false);
      this.show(this.parser.push(text + this.stops.flush()));
    }
    this.show(this.parser.flush());
  }

  /** What came since the last call; undefined when there is nothing. */
  take(): Chunk | undefined {
    const chunk = this.fresh;
    if (chunk.tokens.length === 0 && chunk.text === '' && chunk.reasoning === '') return undefined;
    this.fresh = emptyChunk();
    return chunk;
  }

  private show({ text, reasoning }: { text: string; reasoning: string }): void {
    this.text += text;
    this.reasoning += reasoning;
    this.fresh.text += text;
    this.fresh.reasoning += reasoning;
  }

  private pushLogprob({ id, logprob, top }: SampledToken): void {
    const entry = {
      id,
      bytes: this.tokenizer.bytesOf(id),
      logprob,
      top: top
        .slice(0, this.request.native.logprobs)
        .map((token) => ({ id: token.id, bytes: this.tokenizer.bytesOf(token.id), logprob: token.logprob })),
    };
    this.logprobs.push(entry);
    this.fresh.logprobs ??= [];
    this.fresh.logprobs.push(entry);
  }
}

function emptyChunk(): Chunk {
  return { text: '', reasoning: '', tokens: [] };
}
