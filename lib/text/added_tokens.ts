/** Cuts text at added tokens, as the tokenizers library does: those not normalized first, of two at one place the longest. */
import { escapeRegExp } from '../chat/markers.js';
import type { Segment } from './encoder.js';
import type { AddedToken } from './vocabulary.js';

export class AddedTokenSplitter {
  private readonly passes: { pattern: RegExp; ids: Map<string, number> }[];

  constructor(tokens: readonly AddedToken[]) {
    this.passes = [false, true]
      .map((normalized) => tokens.filter((token) => token.normalized === normalized))
      .filter((group) => group.length > 0)
      .map((group) => ({
        pattern: new RegExp(
          [...group]
            .sort((a, b) => b.content.length - a.content.length)
            .map(patternOf)
            .join('|'),
          'gu',
        ),
        ids: new Map(group.map(({ content, id }) => [content, id])),
      }));
  }

  split(text: string): Segment[] {
    let segments: Segment[] = [text];
    for (const { pattern, ids } of this.passes) {
      segments = segments.flatMap((segment) => (typeof segment === 'string' ? cut(segment, pattern, ids) : [segment]));
    }
    return segments.filter((segment) => segment !== '');
  }
}

/** The token in a group of its own, so that white space taken along can be told from it. */
function patternOf({ content, lstrip, rstrip, singleWord }: AddedToken): string {
  const token = `(${escapeRegExp(content)})`;
  const word = singleWord ? `(?<![\\p{L}\\p{N}_])${token}(?![\\p{L}\\p{N}_])` : token;
  return `${lstrip ? '\\s*' : ''}${word}${rstrip ? '\\s*' : ''}`;
}

function cut(text: string, pattern: RegExp, ids: ReadonlyMap<string, number>): Segment[] {
  const segments: Segment[] = [];
  let from = 0;
  for (const match of text.matchAll(pattern)) {
    const content = match.slice(1).find((group) => group !== undefined);
    segments.push(text.slice(from, match.index), ids.get(content ?? '') ?? '');
    from = match.index + match[0].length;
  }
  segments.push(text.slice(from));
  return segments;
}
