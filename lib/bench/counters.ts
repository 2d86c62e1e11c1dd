/** What a server counted during a run, by the difference of its metrics before and after, where it has them. */

/** Sums of counters by name, without prefix and `_total`; accepted drafts also by position, as `name/position`. */
export type Counters = ReadonlyMap<string, number>;

export interface Speculation {
  drafts: number;
  draftTokens: number;
  acceptedTokens: number;
  /** Accepted drafts at each position of a draft. */
  acceptedPerPosition: number[];
}

/** Prompt tokens looked up in the prefix cache, and found there. */
export interface PrefixCache {
  queries: number;
  hits: number;
}

const LINE = /^\w+:((?:spec_decode_num|prefix_cache)_\w+?)(?:_total)?(?:\{([^}]*)\})?\s+([\d.eE+]+)/;
const MOST_POSITIONS = 64;

/** From a page of Prometheus text, whatever prefix its names have. */
export function readCounters(page: string): Counters {
  const counters = new Map<string, number>();
  for (const line of page.split('\n')) {
    const [, name, labels = '', text] = LINE.exec(line) ?? [];
    if (name === undefined) continue;
    const position = /position="(\d+)"/.exec(labels)?.[1];
    const key = position === undefined ? name : `${name}/${position}`;
    counters.set(key, (counters.get(key) ?? 0) + Number(text));
  }
  return counters;
}

/** Undefined where nothing was drafted. */
export function speculationBetween(before: Counters, after: Counters): Speculation | undefined {
  const grown = growth(before, after);
  const drafts = grown('spec_decode_num_drafts');
  if (drafts <= 0) return undefined;
  const positions = Array.from({ length: MOST_POSITIONS }, (_, i) => `spec_decode_num_accepted_tokens_per_pos/${i}`);
  return {
    drafts,
    draftTokens: grown('spec_decode_num_draft_tokens'),
    acceptedTokens: grown('spec_decode_num_accepted_tokens'),
    acceptedPerPosition: positions.filter((name) => after.has(name)).map(grown),
  };
}

/** Undefined where the server has no such metrics. */
export function prefixCacheBetween(before: Counters, after: Counters): PrefixCache | undefined {
  if (!after.has('prefix_cache_queries')) return undefined;
  const grown = growth(before, after);
  return { queries: grown('prefix_cache_queries'), hits: grown('prefix_cache_hits') };
}

function growth(before: Counters, after: Counters): (name: string) => number {
  return (name) => (after.get(name) ?? 0) - (before.get(name) ?? 0);
}
