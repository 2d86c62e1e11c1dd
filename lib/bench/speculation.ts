/** How speculation did during a run: the difference of a server's counters before and after, where it has them. */

export interface Speculation {
  drafts: number;
  draftTokens: number;
  acceptedTokens: number;
  /** Accepted drafts at each position of a draft. */
  acceptedPerPosition: number[];
}

const LINE = /^\w+:spec_decode_(num_\w+?)(?:_total)?(?:\{([^}]*)\})?\s+([\d.eE+]+)/;

/** From a page of Prometheus text, whatever prefix its names have; undefined where nothing was drafted. */
export function readSpeculation(metrics: string | undefined): Speculation | undefined {
  const found: Speculation = { drafts: 0, draftTokens: 0, acceptedTokens: 0, acceptedPerPosition: [] };
  let any = false;
  for (const line of metrics?.split('\n') ?? []) {
    const match = LINE.exec(line);
    if (match === null) continue;
    const [, name, labels = '', text] = match;
    const value = Number(text);
    any = true;
    if (name === 'num_drafts') found.drafts += value;
    if (name === 'num_draft_tokens') found.draftTokens += value;
    if (name === 'num_accepted_tokens') found.acceptedTokens += value;
    const position = Number(/position="(\d+)"/.exec(labels)?.[1] ?? Number.NaN);
    if (name === 'num_accepted_tokens_per_pos' && position < 64) {
      found.acceptedPerPosition[position] = (found.acceptedPerPosition[position] ?? 0) + value;
    }
  }
  return any ? found : undefined;
}

export function speculationBetween(before: Speculation | undefined, after: Speculation | undefined): Speculation | undefined {
  if (after === undefined) return undefined;
  const drafts = after.drafts - (before?.drafts ?? 0);
  if (drafts <= 0) return undefined;
  return {
    drafts,
    draftTokens: after.draftTokens - (before?.draftTokens ?? 0),
    acceptedTokens: after.acceptedTokens - (before?.acceptedTokens ?? 0),
    acceptedPerPosition: Array.from(after.acceptedPerPosition, (n, i) => (n ?? 0) - (before?.acceptedPerPosition[i] ?? 0)),
  };
}
