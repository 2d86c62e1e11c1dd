/**
 * The generations of one request: one per prompt and choice, read together, ended together. The first error ends all, and
 * so does a reader that leaves.
 */
import type { Generation } from '../generate.js';
import type { Model } from '../model.js';
import type { Chunk, GenerateRequest, GenerateResult, GenerationStart } from '../types.js';
import type { RequestContext } from './sampling.js';

/** What one generation produced: some output, or its end. `index` is its place in the request. */
export type Piece = { index: number; chunk: Chunk } | { index: number; result: GenerateResult };

export class Generations {
  private readonly all: Generation[];

  constructor(
    model: Model,
    requests: readonly GenerateRequest[],
    private readonly context: RequestContext,
    stream: boolean,
  ) {
    const { maxTokens } = requests[0] ?? {};
    context.observer?.planned?.({ choices: requests.length, maxTokens, stream });
    this.all = requests.map((request) => model.generate(request));
    for (const generation of this.all) generation.started.then((facts) => this.observeStart(facts), ignore);
  }

  /** What is known of a generation's prompt; settled before its first piece. */
  started(index: number): Promise<GenerationStart> {
    const generation = this.all[index];
    return generation === undefined ? Promise.reject(new RangeError(`no generation ${index}`)) : generation.started;
  }

  async *pieces(): AsyncGenerator<Piece, void, undefined> {
    try {
      const [only] = this.all;
      if (this.all.length === 1 && only !== undefined) yield* this.read(only, 0);
      else yield* merge(this.all.map((generation, index) => this.read(generation, index)));
    } finally {
      for (const generation of this.all) generation.stop();
    }
  }

  /** All results in order. */
  async results(): Promise<GenerateResult[]> {
    const results: GenerateResult[] = [];
    for await (const piece of this.pieces()) if ('result' in piece) results[piece.index] = piece.result;
    return results;
  }

  private async *read(generation: Generation, index: number): AsyncGenerator<Piece, void, undefined> {
    const { observer } = this.context;
    for await (const chunk of generation) {
      if (chunk.tokens.length > 0) observer?.tokens?.(chunk.tokens.length, index);
      observer?.text?.(chunk.reasoning + chunk.text);
      yield { index, chunk };
    }
    const result = await generation.result;
    const { finishReason, usage, timings } = result;
    observer?.ended?.({ index, finishReason, completionTokens: usage.completionTokens, queueMs: timings.queueMs });
    yield { index, result };
  }

  private observeStart({ promptTokens, cachedTokens, queueMs }: GenerationStart): void {
    this.context.observer?.started?.({ promptTokens: promptTokens.length, cachedTokens, queueMs });
  }
}

function ignore(): void {}

/** Reads several sources at once. Each is asked for more only when its last item was taken. */
async function* merge<T>(sources: readonly AsyncIterator<T, void, undefined>[]): AsyncGenerator<T, void, undefined> {
  const ready: { item: T; source: AsyncIterator<T, void, undefined> }[] = [];
  let open = sources.length;
  let failure: { error: unknown } | undefined;
  let wake = ignore;
  const ask = (source: AsyncIterator<T, void, undefined>) => {
    source.next().then(
      ({ value, done }) => {
        if (done) open -= 1;
        else ready.push({ item: value as T, source });
        wake();
      },
      (error: unknown) => {
        failure ??= { error };
        wake();
      },
    );
  };
  for (const source of sources) ask(source);
  while (failure === undefined) {
    const next = ready.shift();
    if (next !== undefined) {
      yield next.item;
      ask(next.source);
    } else if (open > 0) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    } else return;
  }
  throw failure.error;
}
