/** `sigmoe bench throughput` and `latency`: the same requests without a server, on a model in this process. */
import type { GenerateRequest, Model } from '../index.js';
import type { BenchRequest } from './dataset.js';

export interface OfflineSampling {
  temperature: number;
  topP: number;
}

/** vLLM's own defaults: sampling from the whole distribution, so that no filter is measured. */
export const OFFLINE_SAMPLING: OfflineSampling = { temperature: 1, topP: 1 };

export interface ThroughputRun {
  seconds: number;
  promptTokens: number;
  outputTokens: number;
}

/** All requests at once, each to its full length: the engine decides how many run together. */
export async function benchThroughput(
  model: Model,
  requests: readonly BenchRequest[],
  sampling: OfflineSampling,
  hooks: { onDone?: (done: number) => void; signal?: AbortSignal } = {},
): Promise<ThroughputRun> {
  const start = performance.now();
  const results = await model.generateBatch(
    requests.map((request, i) => generateRequest(request, sampling, i)),
    {
      onProgress: ({ done }) => hooks.onDone?.(done),
      signal: hooks.signal,
    },
  );
  return {
    seconds: (performance.now() - start) / 1000,
    promptTokens: results.reduce((total, { usage }) => total + usage.promptTokens, 0),
    outputTokens: results.reduce((total, { usage }) => total + usage.completionTokens, 0),
  };
}

/** Seconds of each batch, from handing it over to the end of its last answer. The first `warmups` do not count. */
export async function benchLatency(
  model: Model,
  batch: readonly BenchRequest[],
  counts: { warmups: number; iterations: number },
  sampling: OfflineSampling,
  hooks: { onDone?: (done: number) => void; signal?: AbortSignal } = {},
): Promise<number[]> {
  const latencies: number[] = [];
  for (let i = 0; i < counts.warmups + counts.iterations; i++) {
    const { seconds } = await benchThroughput(
      model,
      batch,
      sampling,
      hooks.signal === undefined ? {} : { signal: hooks.signal },
    );
    if (i >= counts.warmups) latencies.push(seconds);
    hooks.onDone?.(i + 1);
  }
  return latencies;
}

// Penalties and filters of generation_config.json are set to neutral: the measured work is the same for every model.
function generateRequest(
  { prompt, outputTokens }: BenchRequest,
  { temperature, topP }: OfflineSampling,
  seed: number,
): GenerateRequest {
  return {
    prompt,
    maxTokens: outputTokens,
    ignoreEos: true,
    temperature,
    topP,
    topK: 0,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    seed,
  };
}
