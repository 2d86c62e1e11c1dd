/** Runs the prompts of a self-test: the greedy continuation, token by token, and the scores of its positions, all at once. */
import type { Model } from '../model.js';
import type { RecordedScores } from './types.js';

/** Greedy whatever the model's generation_config.json says. */
const NEUTRAL = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  ignoreEos: true,
} as const;
const BEST = 8;
const FIXED = 8;

export async function greedy(model: Model, prompt: readonly number[], maxTokens: number, signal?: AbortSignal) {
  const { tokens } = await model.generate({ prompt, maxTokens, signal, ...NEUTRAL }).result;
  return tokens;
}

/** The logits that each of `tokens` is chosen by, when those before it are given. */
export async function scoresOf(
  model: Model,
  prompt: readonly number[],
  tokens: readonly number[],
  signal?: AbortSignal,
): Promise<Float32Array[]> {
  const { vocabSize } = model.info;
  const all = await model.logits([...prompt, ...tokens.slice(0, -1)], { signal });
  return tokens.map((_, i) => {
    const row = prompt.length - 1 + i;
    return all.subarray(row * vocabSize, (row + 1) * vocabSize);
  });
}

/** What is kept of a row: its best tokens, best first, and some spread over the vocabulary. */
export function keep(logits: Float32Array): RecordedScores {
  const best: number[] = [];
  for (let id = 0; id < logits.length; id++) {
    const value = at(logits, id);
    if (best.length === BEST && value <= at(logits, best[BEST - 1] ?? 0)) continue;
    const place = best.findIndex((other) => value > at(logits, other));
    best.splice(place < 0 ? best.length : place, 0, id);
    best.length = Math.min(best.length, BEST);
  }
  const fixed = Array.from({ length: FIXED }, (_, i) => Math.floor((i * logits.length) / FIXED));
  const ids = [...new Set([...best, ...fixed])];
  return { ids, logits: ids.map((id) => Number(at(logits, id).toPrecision(8))) };
}

function at(values: Float32Array, index: number): number {
  return values[index] ?? Number.NaN;
}
