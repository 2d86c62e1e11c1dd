/** Whether a value read from a file is a recording: nothing of it is used before. */
import { isFields } from '../folder.js';
import { RECORDING_FORMAT, type SelftestRecording } from './types.js';

export function isRecording(value: unknown): value is SelftestRecording {
  if (!isFields(value) || value.format !== RECORDING_FORMAT) return false;
  const { fingerprint, weights, bfloat16, cases } = value;
  return (
    typeof fingerprint === 'string' &&
    typeof weights === 'string' &&
    (bfloat16 === null || isReducedRun(bfloat16)) &&
    Array.isArray(cases) &&
    cases.length > 0 &&
    cases.every(isCase)
  );
}

function isReducedRun(value: unknown): boolean {
  if (!isFields(value)) return false;
  const { medianError, worstError, beyondBound, nearTieError = 0 } = value;
  return [medianError, worstError, beyondBound, nearTieError].every(Number.isFinite);
}

function isCase(value: unknown): boolean {
  if (!isFields(value) || typeof value.question !== 'string') return false;
  const { prompt, tokens, scores } = value;
  return (
    areIds(prompt) && areIds(tokens) && Array.isArray(scores) && scores.length === tokens.length && scores.every(areScores)
  );
}

function areScores(value: unknown): boolean {
  if (!isFields(value) || !areIds(value.ids) || !Array.isArray(value.logits)) return false;
  return value.logits.length === value.ids.length && value.logits.every(Number.isFinite);
}

function areIds(value: unknown): value is number[] {
  return Array.isArray(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0);
}
