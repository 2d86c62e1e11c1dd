/**
 * Metrics for Prometheus. Names, units and buckets are those of vLLM under the prefix `sigmoe:`, so that dashboards need
 * only another prefix. Nothing in a label comes from a prompt or an answer.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Model, ModelStats } from '../index.js';

const PREFIX = 'sigmoe:';
const FIRST_TOKEN = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
];
const BETWEEN_TOKENS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80,
];
const REQUEST = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680];
const TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000];

export class Metrics {
  readonly registry = new Registry();

  readonly firstToken = this.histogram('time_to_first_token_seconds', 'From arrival to the first token', FIRST_TOKEN);
  readonly betweenTokens = this.histogram(
    'inter_token_latency_seconds',
    'Between tokens that follow each other',
    BETWEEN_TOKENS,
  );
  readonly perToken = this.histogram(
    'time_per_output_token_seconds',
    'Of a finished request: time after the first token, over the tokens after the first',
    BETWEEN_TOKENS,
  );
  readonly whole = this.histogram('e2e_request_latency_seconds', 'From arrival to the last token', REQUEST);
  readonly queue = this.histogram('request_queue_time_seconds', 'From arrival to the first step', REQUEST);
  readonly inference = this.histogram('request_inference_time_seconds', 'From the first step to the last token', REQUEST);
  readonly prefill = this.histogram('request_prefill_time_seconds', 'From the first step to the first token', REQUEST);
  readonly decode = this.histogram('request_decode_time_seconds', 'From the first token to the last', REQUEST);
  readonly promptSize = this.histogram('request_prompt_tokens', 'Tokens of a prompt', TOKENS);
  readonly answerSize = this.histogram('request_generation_tokens', 'Tokens of an answer', TOKENS);
  readonly choices = this.histogram('request_params_n', 'Choices asked for', [1, 2, 5, 10, 20]);
  readonly maxTokens = this.histogram('request_params_max_tokens', 'Longest answer asked for', TOKENS);
  readonly promptTokens = this.counter('prompt_tokens_total', 'Prompt tokens computed or found in the cache');
  readonly generationTokens = this.counter('generation_tokens_total', 'Tokens generated');
  readonly success = this.counter('request_success_total', 'Answers that ended by themselves', ['finished_reason']);
  readonly http = this.counter('http_requests_total', 'Requests answered', ['route', 'status']);

  constructor(modelName: string, model: () => Model | undefined) {
    this.registry.setDefaultLabels({ model_name: modelName });
    collectDefaultMetrics({ register: this.registry });
    this.fromStats(model);
  }

  /** Gauges and counters that the engine keeps itself, read when somebody asks. */
  private fromStats(model: () => Model | undefined): void {
    const { registry } = this;
    const stats = (): ModelStats | undefined => {
      const loaded = model();
      return loaded === undefined || loaded.disposed ? undefined : loaded.stats();
    };
    const gauge = (name: string, help: string, value: (stats: ModelStats) => number) =>
      new Gauge({
        name: PREFIX + name,
        help,
        registers: [registry],
        collect() {
          const now = stats();
          this.set(now === undefined ? 0 : value(now));
        },
      });
    const counter = (name: string, help: string, value: (stats: ModelStats) => number) => {
      let counted = 0;
      return new Counter({
        name: PREFIX + name,
        help,
        registers: [registry],
        collect() {
          const now = stats();
          if (now === undefined) return;
          this.inc(Math.max(0, value(now) - counted));
          counted = value(now);
        },
      });
    };
    gauge('num_requests_running', 'Sequences in the running batch', (now) => now.running);
    gauge('num_requests_waiting', 'Sequences that wait for a place', (now) => now.waiting);
    gauge(
      'kv_cache_usage_perc',
      'Share of the KV cache in use, 1 is all',
      (now) => now.heldPages / Math.max(1, now.totalPages),
    );
    counter('num_preemptions_total', 'Sequences put back to be computed again', (now) => now.preemptions);
    counter('prefix_cache_queries_total', 'Prompt tokens looked up in the prefix cache', (now) => now.prefixQueriedTokens);
    counter('prefix_cache_hits_total', 'Prompt tokens found in the prefix cache', (now) => now.prefixHitTokens);
    counter('spec_decode_num_drafts_total', 'Steps in which drafted tokens were checked', (now) => now.draftChecks);
    counter('spec_decode_num_draft_tokens_total', 'Tokens drafted', (now) => now.draftedTokens);
    counter('spec_decode_num_accepted_tokens_total', 'Drafted tokens that came true', (now) => now.acceptedTokens);
    const byPosition: number[] = [];
    new Counter({
      name: `${PREFIX}spec_decode_num_accepted_tokens_per_pos_total`,
      help: 'Drafted tokens that came true, by their place in the draft',
      labelNames: ['position'],
      registers: [registry],
      collect() {
        for (const [position, accepted] of (stats()?.acceptedPerPosition ?? []).entries()) {
          this.inc({ position: String(position) }, Math.max(0, accepted - (byPosition[position] ?? 0)));
          byPosition[position] = accepted;
        }
      },
    });
    counter('engine_steps_total', 'Steps of the engine', (now) => now.steps);
    new Gauge({
      name: `${PREFIX}cache_config_info`,
      help: 'Settings of the KV cache, as labels',
      labelNames: ['cache_dtype', 'kv_cache_tokens', 'num_pages', 'max_num_seqs', 'max_model_len'],
      registers: [registry],
      collect() {
        const loaded = model();
        if (loaded === undefined || loaded.disposed) return;
        const { context, device, limits } = loaded.info;
        const labels = {
          cache_dtype: device.kvCacheDtype,
          kv_cache_tokens: String(limits.kvCacheTokens),
          num_pages: String(loaded.stats().totalPages),
          max_num_seqs: String(limits.maxNumSeqs),
          max_model_len: String(context),
        };
        this.set(labels, 1);
      },
    });
  }

  private histogram(name: string, help: string, buckets: number[]): Histogram {
    return new Histogram({ name: PREFIX + name, help, buckets, registers: [this.registry] });
  }

  private counter<T extends string>(name: string, help: string, labelNames: T[] = []): Counter<T> {
    return new Counter({ name: PREFIX + name, help, labelNames, registers: [this.registry] });
  }
}
