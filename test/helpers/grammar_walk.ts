/** Random walks through a grammar, with no model: any allowed token may come next. */
import type { GrammarMatcher } from '../../lib/grammar/matcher.js';
import type { Tokenizer } from '../../lib/tokenizer.js';

/** Numbers from 0 up to 1, the same for the same seed. */
export function randomFrom(seed: number): () => number {
  let state = seed % 2147483647 || 1;
  return () => {
    state = (state * 48271) % 2147483647;
    return (state - 1) / 2147483646;
  };
}

export function idsOf(mask: Int32Array): number[] {
  const ids: number[] = [];
  for (const [at, word] of mask.entries()) {
    for (let bit = 0; bit < 32; bit++) if ((word >>> bit) & 1) ids.push(at * 32 + bit);
  }
  return ids;
}

export interface Walk {
  ids: number[];
  bytes: Uint8Array;
  /** It reached a place where the grammar may end; otherwise it was cut off. */
  ended: boolean;
}

/** After `patience` tokens what closes strings, lists and objects is preferred, so that most walks come to an end. */
export async function walk(
  matcher: GrammarMatcher,
  tokenizer: Tokenizer,
  random: () => number,
  patience = 12,
  limit = 300,
): Promise<Walk> {
  const ids: number[] = [];
  const closing = /["}\]]/;
  for (let ended = false; ; ) {
    const allowed = idsOf(await matcher.mask());
    const text = allowed.filter((id) => !tokenizer.stopIds.includes(id));
    const mayEnd = text.length < allowed.length;
    ended = mayEnd && (text.length === 0 || random() < 0.4);
    if (ended || ids.length === limit) {
      return { ids, bytes: Buffer.concat(ids.map((id) => tokenizer.bytesOf(id))), ended };
    }
    let choices = text;
    if (ids.length >= patience) {
      const closers = text.filter((id) => closing.test(Buffer.from(tokenizer.bytesOf(id)).toString('latin1')));
      if (closers.length > 0)
        choices = closers.sort((a, b) => tokenizer.bytesOf(a).length - tokenizer.bytesOf(b).length).slice(0, 2);
    }
    const id = choices[Math.floor(random() * choices.length)];
    if (id === undefined) throw new Error('a mask without a token');
    ids.push(id);
    matcher.accept(id);
  }
}
