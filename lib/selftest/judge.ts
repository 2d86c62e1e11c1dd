/**
 * What a run may differ from its recording by. In float32 (`exact`): every position within 1e-4, the same tokens. In anything
 * narrower (`reduced`): positions within twice the median error of the recorder's own BF16 run plus 0.5%, or what activations of
 * 8 bits may cost where the device has those; a router that chose other experts in a near-tie puts a few positions beyond, and
 * tokens may first differ only where the two best scores are closer than the measured error.
 */
import type { ModelInfo } from '../types.js';
import type { RecordedCase, SelftestCaseReport, SelftestRecording } from './types.js';

export const EXACT_BOUND = 1e-4;
/** What FP8 activations, and INT8 ones (W8A8), may cost in the median; a position twice that, as in the goldens of the kernels. */
const FP8_MEDIAN = 0.04;
const INT8_MEDIAN = 0.02;
const BEYOND_PER_CASE = 3;
const WORST_FACTOR = 1.5;

/** What a device made of a case. `logits` are whole rows, one for each recorded token, the recorded tokens before it given. */
export interface Measured {
  tokens: readonly number[];
  logits: readonly Float32Array[];
}

/** Whether products round activations to 8 bits: with FP8 weights those of many rows on Hopper, with INT8 ones Ascend's. */
export type Activations = 'wide' | 'fp8' | 'int8';

export function activationsOf({ device, weightFormat }: Pick<ModelInfo, 'device' | 'weightFormat'>): Activations {
  if (device.compute === 'int8') return 'int8';
  return device.kernels === 'sm_90' && device.compute === 'bfloat16' && weightFormat.startsWith('FP8') ? 'fp8' : 'wide';
}

/** Of a position. Where the recorder had no BF16 products: what FP8 activations may cost. */
export function reducedBound(bfloat16: SelftestRecording['bfloat16'], activations: Activations): number {
  const least = { wide: 0, fp8: 2 * FP8_MEDIAN, int8: 2 * INT8_MEDIAN }[activations];
  if (bfloat16 === null) return Math.max(least, FP8_MEDIAN);
  return Math.max(least, 2 * bfloat16.medianError + 0.005);
}

/** Relative error of the recorded scores of each position. */
export function errorsOf(recorded: RecordedCase, logits: readonly Float32Array[]): number[] {
  return recorded.scores.map(({ ids, logits: expected }, i) => {
    let error = 0;
    let norm = 0;
    expected.forEach((value, j) => {
      error += (scoreOf(logits[i], ids[j]) - value) ** 2;
      norm += value ** 2;
    });
    return Math.sqrt(error / norm);
  });
}

export function judge(
  recorded: RecordedCase,
  measured: Measured,
  rule: 'exact' | 'reduced',
  bfloat16: SelftestRecording['bfloat16'],
  activations: Activations,
): SelftestCaseReport {
  const errors = errorsOf(recorded, measured.logits);
  const problems = rule === 'exact' ? exactProblems(errors) : reducedProblems(errors, bfloat16, activations);
  const differs = recorded.tokens.findIndex((token, i) => token !== measured.tokens[i]);
  if (differs >= 0) {
    const problem = rule === 'exact' ? 'float32 gives the same tokens everywhere' : farApart(recorded, measured, differs);
    if (problem !== '') {
      const found = measured.tokens[differs] ?? 'nothing';
      problems.push(`token ${differs + 1} is ${found}, recorded was ${recorded.tokens[differs]}: ${problem}`);
    }
  }
  return {
    question: recorded.question,
    passed: problems.length === 0,
    tokens: recorded.tokens.length,
    sameTokens: differs < 0 ? recorded.tokens.length : differs,
    medianError: median(errors),
    worstError: worst(errors),
    problems,
  };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

/** NaN counts as the worst there is. */
export function worst(values: readonly number[]): number {
  return values.reduce((most, value) => (value <= most ? most : Number.isNaN(value) ? Infinity : value), 0);
}

export function countBeyond(errors: readonly number[], bound: number): number {
  return errors.filter((error) => !(error <= bound)).length;
}

function exactProblems(errors: readonly number[]): string[] {
  const beyond = countBeyond(errors, EXACT_BOUND);
  if (beyond === 0) return [];
  return [
    `${beyond} of ${errors.length} positions are off by more than ${EXACT_BOUND}, at worst ${worst(errors).toPrecision(3)}`,
  ];
}

function reducedProblems(
  errors: readonly number[],
  bfloat16: SelftestRecording['bfloat16'],
  activations: Activations,
): string[] {
  const bound = reducedBound(bfloat16, activations);
  const beyond = countBeyond(errors, bound);
  const allowed = (bfloat16?.beyondBound ?? 0) + BEYOND_PER_CASE;
  const worstKnown = Math.max(bfloat16?.worstError ?? Infinity, bfloat16?.nearTieError ?? 0);
  const limit = Math.max(bound, WORST_FACTOR * worstKnown);
  const problems = [];
  const middle = median(errors);
  if (activations !== 'wide' && !(middle <= bound / 2)) {
    problems.push(
      `the median position is off by ${middle.toPrecision(3)}, at most ${(bound / 2).toPrecision(3)} is the activations' doing`,
    );
  }
  if (beyond > allowed) problems.push(`${beyond} of ${errors.length} positions are off by more than ${bound.toPrecision(3)}`);
  if (!(worst(errors) <= limit)) {
    problems.push(
      `a position is off by ${worst(errors).toPrecision(3)}, at most ${limit.toPrecision(3)} is a near-tie's doing`,
    );
  }
  return problems;
}

/** Empty when the token chosen and the recorded one were a near-tie for what was measured. */
function farApart(recorded: RecordedCase, measured: Measured, position: number): string {
  const scores = recorded.scores[position];
  const at = scores?.ids.indexOf(measured.tokens[position] ?? -1) ?? -1;
  if (scores === undefined || at < 0) return 'it was not among the best';
  const deviation = worst(scores.logits.map((value, i) => Math.abs(scoreOf(measured.logits[position], scores.ids[i]) - value)));
  const gap = Math.max(...scores.logits) - (scores.logits[at] ?? Number.NaN);
  if (gap <= 2 * deviation) return '';
  return `their scores are ${gap.toPrecision(3)} apart, and off by ${deviation.toPrecision(3)} at most`;
}

function scoreOf(logits: Float32Array | undefined, id: number | undefined): number {
  return logits?.[id ?? -1] ?? Number.NaN;
}
