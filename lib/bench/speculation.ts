/**
 * `sigmoe bench speculation`: the same real text with drafts and without, in turns on one model, so that both see the machine in
 * the same state. Sampling is keyed by seed and position: both ways give the same tokens, and differ in time alone.
 */
import type { GenerateRequest, Model } from '../index.js';
import { PROMPTS } from './prompts.js';
import { percentile, sorted, sum } from './statistics.js';

export interface SpeculationRow {
  /** Requests answered together. */
  batch: number;
  /** Whether depth control chose how much to draft. */
  adaptive: boolean;
  /** Medians over the rounds; `gain` is the median of the rounds' own ratios. */
  plainTokensPerSecond: number;
  tokensPerSecond: number;
  gain: number;
  /** Steps that checked drafts, as a share of all that made tokens. */
  verifyShare: number;
  /** Share of the drafted tokens that came true, and tokens that a sequence got of a step, its own one included. */
  acceptance: number;
  tokensPerStep: number;
  /** Milliseconds of a step without drafts, of one that checks them, and of drafting for one. 0: there was none. */
  plainStepMs: number;
  verifyStepMs: number;
  draftMs: number;
}

export interface SpeculationSetup {
  batches: readonly number[];
  outputTokens: number;
  rounds: number;
  temperature: number;
}

export interface SpeculationHooks {
  onRound?: (done: number) => void;
  signal?: AbortSignal;
}

/** One row per batch size. The first round of a batch does not count. */
export async function benchSpeculation(
  model: Model,
  adaptive: boolean,
  setup: SpeculationSetup,
  { onRound, signal }: SpeculationHooks = {},
): Promise<SpeculationRow[]> {
  const rows: SpeculationRow[] = [];
  let done = 0;
  for (const batch of setup.batches) {
    const requests = Array.from({ length: batch }, (_, i) => requestOf(i, setup));
    const plainly = requests.map((request): GenerateRequest => ({ ...request, speculative: false }));
    const runs: Record<'plain' | 'drafted', Run[]> = { plain: [], drafted: [] };
    for (let round = 0; round <= setup.rounds; round++) {
      // Who goes first changes, so that a drift of the machine does not count for one of them.
      const order = round % 2 === 0 ? (['plain', 'drafted'] as const) : (['drafted', 'plain'] as const);
      for (const way of order) {
        const measured = await run(model, way === 'plain' ? plainly : requests, signal);
        if (round > 0) runs[way].push(measured);
      }
      onRound?.(++done);
    }
    rows.push({ batch, adaptive, ...summary(runs.plain, runs.drafted) });
  }
  return rows;
}

/** One batch, from handing it over to the end of its last answer. */
interface Run {
  tokens: number;
  seconds: number;
  /** How much each counter of the model grew. */
  grown: Record<Counter, number>;
}

const COUNTERS = [
  'draftedTokens',
  'acceptedTokens',
  'plainSteps',
  'verifySteps',
  'draftPasses',
  'plainMs',
  'verifyMs',
  'draftMs',
] as const;
type Counter = (typeof COUNTERS)[number];

function summary(plain: readonly Run[], drafted: readonly Run[]): Omit<SpeculationRow, 'batch' | 'adaptive'> {
  const median = (values: number[]) => percentile(sorted(values), 50);
  const total = (runs: readonly Run[], name: Counter) => sum(runs.map((run) => run.grown[name]));
  const share = (part: number, whole: number) => (whole > 0 ? part / whole : 0);
  const rate = ({ tokens, seconds }: Run) => tokens / seconds;
  const tokens = sum(drafted.map((run) => run.tokens));
  const accepted = total(drafted, 'acceptedTokens');
  const checks = total(drafted, 'verifySteps');
  return {
    plainTokensPerSecond: median(plain.map(rate)),
    tokensPerSecond: median(drafted.map(rate)),
    gain: median(plain.map((run, i) => run.seconds / (drafted[i]?.seconds ?? run.seconds))),
    verifyShare: share(checks, checks + total(drafted, 'plainSteps')),
    acceptance: share(accepted, total(drafted, 'draftedTokens')),
    tokensPerStep: share(tokens, tokens - accepted),
    plainStepMs: share(total(plain, 'plainMs'), total(plain, 'plainSteps')),
    verifyStepMs: share(total(drafted, 'verifyMs'), checks),
    draftMs: share(total(drafted, 'draftMs'), total(drafted, 'draftPasses')),
  };
}

async function run(model: Model, requests: readonly GenerateRequest[], signal: AbortSignal | undefined): Promise<Run> {
  const before = model.stats();
  const start = performance.now();
  const results = await model.generateBatch(requests, { signal });
  const seconds = (performance.now() - start) / 1000;
  const after = model.stats();
  const grown = {} as Record<Counter, number>;
  for (const name of COUNTERS) grown[name] = after[name] - before[name];
  return { tokens: sum(results.map(({ usage }) => usage.completionTokens)), seconds, grown };
}

function requestOf(i: number, { outputTokens, temperature }: SpeculationSetup): GenerateRequest {
  return {
    messages: [{ role: 'user', content: PROMPTS[i % PROMPTS.length] ?? '' }],
    maxTokens: outputTokens,
    ignoreEos: true,
    temperature,
    topP: 0.95,
    topK: 20,
    repetitionPenalty: 1.05,
    seed: i,
  };
}
