/**
 * Keeps the text of messages apart from the text of the template. A rendered prompt is one string, in which special
 * tokens such as `<|role_end|>` are found by their spelling; a message that spells one would end its own turn and begin
 * another. So every such spelling inside a message is broken by a marker, a character that occurs in no input: what is
 * still whole after rendering was written by the template.
 *
 * A spelling may also form at a border: a message ending in `<|role_` before template text, or two pieces that a template
 * cuts out of a message and joins. Hence a marker also stands at an end that could be part of a spelling.
 */
import { InvalidArgumentError } from '../errors.js';

// U+FDD0..U+FDEF are permanently no characters, so the first is nearly always free; private-use ones follow.
const CANDIDATES = [...range(0xfdd0, 0xfdef), ...range(0xe000, 0xf8ff)];

export class Markers {
  private readonly whole: RegExp | undefined;
  private readonly proper: { prefixes: ReadonlySet<string>; suffixes: ReadonlySet<string> };
  private readonly singles: ReadonlySet<string>;
  private readonly longest: number;

  /**
   * `spellings`: what no message may write. `inputs`: every string that takes part, in any of which no marker may occur.
   * `marker`: the one chosen before, to read what was rendered elsewhere.
   */
  constructor(
    spellings: readonly string[],
    inputs: readonly string[],
    readonly marker = unusedCharacter([...inputs, ...spellings]),
  ) {
    // Case is ignored because a template may change it.
    const folded = spellings.map((spelling) => spelling.toLowerCase());
    const prefixes = new Set<string>();
    const suffixes = new Set<string>();
    for (const spelling of folded) {
      for (let n = 1; n < spelling.length; n++) {
        prefixes.add(spelling.slice(0, n));
        suffixes.add(spelling.slice(n));
      }
    }
    this.singles = new Set(folded.filter((spelling) => spelling.length === 1));
    this.proper = { prefixes, suffixes };
    this.longest = Math.max(0, ...folded.map((spelling) => spelling.length));
    this.whole = folded.length === 0 ? undefined : startsOf(folded);
  }

  /** Text of a message with every spelling broken, inside and at the ends. */
  guard(text: string): string {
    return this.guardEnds(this.guardInside(text));
  }

  /** Breaks what stands whole in `text`, such as after a replacement has brought two pieces together. */
  guardInside(text: string): string {
    if (this.whole === undefined || text === '') return text;
    // The look-ahead finds every start, also of spellings that overlap; the marker goes behind its first character.
    const starts = [...text.matchAll(this.whole)].map((match) => match.index);
    if (starts.length === 0) return text;
    let result = '';
    let from = 0;
    for (const start of starts) {
      // A spelling of one character has no inside: two markers in front of it say that it is text (isGuarded).
      const single = this.singles.has(text.charAt(start).toLowerCase());
      result +=
        text.slice(from, start) + (single ? this.marker.repeat(2) : '') + text.charAt(start) + (single ? '' : this.marker);
      from = start + 1;
    }
    return result + text.slice(from);
  }

  /** Whether a token of one character that follows `before` was written by a message. */
  isGuarded(before: string): boolean {
    return before.endsWith(this.marker.repeat(2));
  }

  /** Whether `text` holds a whole spelling, which only the template writes. */
  holdsSpelling(text: string): boolean {
    if (this.whole === undefined) return false;
    for (const { index } of text.matchAll(this.whole)) {
      if (!this.singles.has(text.charAt(index).toLowerCase()) || !this.isGuarded(text.slice(0, index))) return true;
    }
    return false;
  }

  guardEnds(text: string): string {
    if (text === '') return text;
    const head = text.slice(0, this.longest).toLowerCase();
    const tail = text.slice(-this.longest).toLowerCase();
    let before = '';
    let after = '';
    for (let n = 1; n <= Math.min(this.longest, text.length); n++) {
      if (this.proper.suffixes.has(head.slice(0, n))) before = this.marker;
      if (this.proper.prefixes.has(tail.slice(-n))) after = this.marker;
    }
    return before + text + after;
  }

  strip(text: string): string {
    return text.includes(this.marker) ? text.replaceAll(this.marker, '') : text;
  }
}

function unusedCharacter(inputs: readonly string[]): string {
  for (const code of CANDIDATES) {
    const character = String.fromCharCode(code);
    if (!inputs.some((input) => input.includes(character))) return character;
  }
  throw new InvalidArgumentError('messages', `the conversation uses all ${CANDIDATES.length} private-use characters`);
}

/** Matches, with length 0, wherever a spelling begins; the set of first characters makes ordinary text pass quickly. */
function startsOf(spellings: readonly string[]): RegExp {
  const firsts = new Set(spellings.map((spelling) => `\\u${spelling.charCodeAt(0).toString(16).padStart(4, '0')}`));
  return new RegExp(`(?=[${[...firsts].join('')}])(?=${spellings.map(escapeRegExp).join('|')})`, 'gi');
}

export function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&');
}

function* range(first: number, last: number): Generator<number> {
  for (let code = first; code <= last; code++) yield code;
}
