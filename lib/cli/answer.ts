/** Printing an answer as it arrives, and what is said about it afterwards. */
import type { GenerateResult, Generation, ModelInfo, TokenLogprob } from '../index.js';
import { integer, json, measure } from './format.js';
import { dim, note, printable, write } from './terminal.js';

/** Streams to stdout, thinking to stderr, and ends the last line of each. */
export async function printAnswer(generation: Generation): Promise<GenerateResult> {
  let thinking = false;
  let lastCharacter = '';
  for await (const chunk of generation) {
    if (chunk.reasoning !== '') {
      process.stderr.write(dim(printable(chunk.reasoning, process.stderr)));
      thinking = true;
    }
    if (chunk.text === '') continue;
    if (thinking) process.stderr.write('\n');
    thinking = false;
    await write(printable(chunk.text));
    lastCharacter = chunk.text.at(-1) ?? lastCharacter;
  }
  if (thinking) process.stderr.write('\n');
  if (lastCharacter !== '\n') await write('\n');
  return generation.result;
}

/** One line of figures on stderr. */
export function noteStats(result: GenerateResult, info: ModelInfo): void {
  const { ttftMs, totalMs, tokensPerSecond } = result.timings;
  const { device } = info;
  const cache = device.kvCacheDtype === 'fp8' ? ', KV cache in fp8' : '';
  const prompts = device.prefillAttention === 'fp8' ? ', prompts in fp8' : '';
  const { draftedTokens, acceptedTokens } = result.usage;
  const drafts = draftedTokens === 0 ? '' : `, ${integer(acceptedTokens)} of ${integer(draftedTokens)} drafts came true`;
  note(
    dim(
      `${integer(result.usage.completionTokens)} tokens in ${measure(totalMs)} ms: ${measure(tokensPerSecond)} tokens/s after a first token at ` +
        `${measure(ttftMs)} ms (prompt of ${integer(result.usage.promptTokens)})${drafts}; ${device.name} ${device.kernels} ${device.compute}${cache}${prompts}, ` +
        `${device.threads} threads`,
    ),
  );
}

/** A result as one line of JSON. */
export function resultJson(result: GenerateResult, extra: Record<string, unknown> = {}): string {
  const { logprobs, ...rest } = result;
  return json({ ...extra, ...rest, ...(logprobs === undefined ? {} : { logprobs: logprobs.map(tokenJson) }) });
}

// Bytes as numbers, and as text where they are some: a token may hold part of a character.
function tokenJson({ id, bytes, logprob, top }: TokenLogprob) {
  const fields = (token: { id: number; bytes: Uint8Array; logprob: number }) => ({
    id: token.id,
    token: new TextDecoder().decode(token.bytes),
    bytes: [...token.bytes],
    logprob: token.logprob,
  });
  return { ...fields({ id, bytes, logprob }), top: top.map(fields) };
}
