/** /tokenize and /detokenize, in vLLM's shape. */
import { chatPrompt, promptIds } from './chat_prompt.js';
import { checkSpecialTokens } from './completions.js';
import { badRequest } from './errors.js';
import type { Host } from './host.js';
import { DetokenizeBody, TokenizeBody } from './schema.js';
import { BodyReader } from './validate.js';
import type { Tokens } from './wire.js';

const tokenizeReader = new BodyReader(TokenizeBody);
const detokenizeReader = new BodyReader(DetokenizeBody);

export async function tokenize(host: Host, given: unknown): Promise<Tokens> {
  const body = tokenizeReader.read(given);
  host.checkModel(body.model);
  if ((body.prompt === undefined) === (body.messages === undefined)) {
    throw badRequest('prompt', 'prompt: expected exactly one of prompt and messages');
  }
  if (body.add_special_tokens !== undefined) checkSpecialTokens(host, body.add_special_tokens);
  const { tokenizer, info } = host.model;
  const tokens = body.prompt === undefined ? await chatIds(host, given, body) : await tokenizer.encodeAsync(body.prompt);
  const decoder = new TextDecoder();
  return {
    count: tokens.length,
    max_model_len: info.context,
    tokens,
    token_strs: body.return_token_strs ? tokens.map((id) => decoder.decode(tokenizer.bytesOf(id))) : null,
  };
}

export function detokenize(host: Host, given: unknown): { prompt: string } {
  const body = detokenizeReader.read(given);
  host.checkModel(body.model);
  const { tokenizer } = host.model;
  const wrong = body.tokens.findIndex((id) => id >= tokenizer.vocabSize);
  if (wrong >= 0) throw badRequest(`tokens[${wrong}]`, `tokens[${wrong}]: expected a token id below ${tokenizer.vocabSize}`);
  return { prompt: tokenizer.decode(body.tokens, { skipSpecial: false }) };
}

async function chatIds(host: Host, given: unknown, body: TokenizeBody): Promise<number[]> {
  const { messages = [], ...rest } = body;
  return promptIds(host, await chatPrompt(host, given, { ...rest, messages }, { showTools: true }));
}
