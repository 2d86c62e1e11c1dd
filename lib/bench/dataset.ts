/** What the requests of a benchmark ask: random text of an exact number of tokens, bundled questions, or lines of a file. */
import { InvalidArgumentError, type Tokenizer } from '../index.js';
import { PROMPTS } from './prompts.js';
import { Random } from './random.js';

export interface BenchRequest {
  prompt: string;
  /** Tokens of the prompt alone, where a tokenizer counted them; a chat template adds its own. */
  promptTokens: number | undefined;
  outputTokens: number;
}

export interface RandomLengths {
  inputLen: number;
  outputLen: number;
  /** Lengths are uniform within this share above and below. */
  rangeRatio: number;
  /** Tokens that all prompts begin with, beside `inputLen`: what a prefix cache can find again. */
  prefixLen: number;
}

export function randomRequests(tokenizer: Tokenizer, count: number, lengths: RandomLengths, seed: number): BenchRequest[] {
  const random = new Random(seed);
  const words = commonWords(tokenizer);
  const around = (length: number) => {
    const spread = Math.floor(length * lengths.rangeRatio);
    return Math.max(1, random.integer(length - spread, length + spread));
  };
  const draw = (n: number) => Array.from({ length: n }, () => random.pick(words));
  const prefix = draw(lengths.prefixLen);
  return Array.from({ length: count }, () => {
    const inputLen = lengths.prefixLen + around(lengths.inputLen);
    const prompt = textOfExactly(tokenizer, inputLen, [...prefix, ...draw(inputLen - prefix.length)], draw);
    return { prompt, promptTokens: inputLen, outputTokens: around(lengths.outputLen) };
  });
}

/** Questions of the bundled list in turn. */
export function bundledRequests(tokenizer: Tokenizer | undefined, count: number, outputTokens: number): BenchRequest[] {
  return Array.from({ length: count }, (_, i) => request(tokenizer, PROMPTS[i % PROMPTS.length] ?? '', outputTokens));
}

/** JSON lines: {"prompt": text}, and optionally {"output_tokens": n}. The file begins again where it is too short. */
export function fileRequests(
  text: string,
  path: string,
  tokenizer: Tokenizer | undefined,
  count: number,
  outputLen: number,
): BenchRequest[] {
  const lines = text.split(/\r?\n/).flatMap((line, index) => (line.trim() === '' ? [] : [{ line, number: index + 1 }]));
  if (lines.length === 0) throw new InvalidArgumentError('datasetPath', `${path}: expected JSON lines, found an empty file`);
  const rows = lines.slice(0, count).map(({ line, number }) => {
    const row = parse(line);
    const { prompt, output_tokens: tokens = outputLen } = row ?? {};
    if (typeof prompt !== 'string' || prompt === '' || !Number.isInteger(tokens) || (tokens as number) < 1) {
      const expected = 'expected {"prompt": text} with an optional positive "output_tokens"';
      throw new InvalidArgumentError('datasetPath', `${path}: line ${number}: ${expected}`);
    }
    return request(tokenizer, prompt, tokens as number);
  });
  return Array.from({ length: count }, (_, i) => rows[i % rows.length] as BenchRequest);
}

function parse(line: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

function request(tokenizer: Tokenizer | undefined, prompt: string, outputTokens: number): BenchRequest {
  return { prompt, promptTokens: tokenizer?.encode(prompt).length, outputTokens };
}

// Tokens that are a space and a word: put side by side, they are encoded again as themselves. A vocabulary without such
// words offers every token that is whole text; `<` could begin the spelling of a special token.
function commonWords(tokenizer: Tokenizer): number[] {
  const texts: [number, string][] = [];
  const decoder = new TextDecoder('utf-8', { fatal: true });
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    const bytes = tokenizer.bytesOf(id);
    if (bytes.length === 0 || tokenizer.specialIds.has(id)) continue;
    try {
      const text = decoder.decode(bytes);
      if (!text.includes('<')) texts.push([id, text]);
    } catch {
      // part of a character
    }
  }
  const words = texts.filter(([, text]) => /^ [a-z]+$/i.test(text));
  return (words.length >= 256 ? words : texts).map(([id]) => id);
}

const ATTEMPTS = 20;

// Text is what a server takes, and encoding the text of random ids may give another number of them: cut or fill, again.
function textOfExactly(tokenizer: Tokenizer, length: number, ids: number[], draw: (n: number) => number[]): string {
  let tried = ids;
  for (let i = 0; i < ATTEMPTS; i++) {
    const text = tokenizer.decode(tried);
    const found = tokenizer.encode(text);
    if (found.length === length) return text;
    tried = found.length > length ? found.slice(0, length) : [...found, ...draw(length - found.length)];
  }
  throw new InvalidArgumentError('inputLen', `no random text of exactly ${length} tokens was found in ${ATTEMPTS} attempts`);
}
