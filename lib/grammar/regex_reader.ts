/** Reads a regular expression into a tree: JavaScript's notation with the u flag, without what a grammar cannot follow. */
import { InvalidArgumentError } from '../errors.js';
import { type CharacterSet, complementOf, setOf } from './characters.js';

const DIGITS: CharacterSet = [[0x30, 0x39]];
const WORD = setOf([...DIGITS, [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]]);
const LINE_ENDS = setOf([
  [0x0a, 0x0a],
  [0x0d, 0x0d],
]);
const SPACES = setOf([
  ...[
    [0x09, 0x0d],
    [0x20, 0x20],
    [0xa0, 0xa0],
    [0x1680, 0x1680],
    [0x2000, 0x200a],
    [0x2028, 0x2029],
  ],
  ...[
    [0x202f, 0x202f],
    [0x205f, 0x205f],
    [0x3000, 0x3000],
    [0xfeff, 0xfeff],
  ],
] as [number, number][]);
const CLASSES: { readonly [letter: string]: CharacterSet } = {
  d: DIGITS,
  D: complementOf(DIGITS),
  w: WORD,
  W: complementOf(WORD),
  s: SPACES,
  S: complementOf(SPACES),
};
const CONTROLS: { readonly [letter: string]: number } = { n: 0x0a, r: 0x0d, t: 0x09, f: 0x0c, v: 0x0b, 0: 0 };
/** What may not stand in a JSON string as it is, and how it is written there. */
const MAX_DEPTH = 100;

export type Node =
  | { kind: 'set'; set: CharacterSet }
  | { kind: 'anchor'; at: '^' | '$' }
  | { kind: 'sequence'; items: Node[] }
  | { kind: 'choice'; options: Node[] }
  | { kind: 'repeat'; item: Node; times: string };

export class RegexReader {
  private at = 0;
  private readonly characters: string[];

  constructor(
    pattern: string,
    private readonly where: string,
  ) {
    this.characters = [...pattern];
  }

  read(): Node {
    const tree = this.choice(0);
    if (this.at < this.characters.length) this.refuse('a closing parenthesis without an opening one');
    return tree;
  }

  private choice(depth: number): Node {
    if (depth > MAX_DEPTH) this.refuse(`parentheses nested more than ${MAX_DEPTH} levels deep`);
    const options = [this.sequence(depth)];
    while (this.take('|')) options.push(this.sequence(depth));
    const [only] = options;
    return options.length === 1 && only !== undefined ? only : { kind: 'choice', options };
  }

  private sequence(depth: number): Node {
    const items: Node[] = [];
    while (this.at < this.characters.length && this.peek() !== '|' && this.peek() !== ')') {
      const item = this.item(depth);
      const times = this.times();
      if (times !== '' && item.kind === 'anchor') this.refuse('nothing to repeat');
      items.push(times === '' ? item : { kind: 'repeat', item, times });
    }
    return { kind: 'sequence', items };
  }

  private item(depth: number): Node {
    const character = this.next();
    switch (character) {
      case '(':
        return this.group(depth);
      case '[':
        return { kind: 'set', set: this.characterClass() };
      case '.':
        return { kind: 'set', set: complementOf(LINE_ENDS) };
      case '^':
      case '$':
        return { kind: 'anchor', at: character };
      case '\\':
        return { kind: 'set', set: this.escape(false) };
      case '*':
      case '+':
      case '?':
        return this.refuse('nothing to repeat');
      default:
        return { kind: 'set', set: setOfOne(character) };
    }
  }

  private group(depth: number): Node {
    if (this.take('?')) {
      const isName = this.peek() === '<' && !['=', '!'].includes(this.characters[this.at + 1] ?? '');
      if (isName) this.at = this.characters.indexOf('>', this.at) + 1 || this.characters.length;
      else if (!this.take(':')) this.refuse('looking ahead or behind is not supported');
    }
    const inner = this.choice(depth + 1);
    if (!this.take(')')) this.refuse('a parenthesis is not closed');
    // In parentheses of its own, so that what follows repeats all of it.
    return inner.kind === 'choice' ? inner : { kind: 'choice', options: [inner] };
  }

  private times(): string {
    const character = this.peek();
    let times = '';
    if (character === '*' || character === '+' || character === '?') times = this.next();
    else if (character === '{') {
      const text = this.characters.slice(this.at, this.at + 24).join('');
      const found = /^\{(\d{1,6})(?:(,)(\d{1,6})?)?\}/.exec(text) ?? this.refuse('braces that do not say how often');
      if (found[3] !== undefined && Number(found[3]) < Number(found[1])) this.refuse('more at least than at most');
      this.at += found[0].length;
      times = found[0];
    }
    // Reluctant or not, the same texts match.
    if (times !== '') this.take('?');
    if (times !== '' && ['*', '+', '?', '{'].includes(this.peek())) this.refuse('nothing to repeat');
    return times;
  }

  private characterClass(): CharacterSet {
    const isNegated = this.take('^');
    const ranges: (readonly [number, number])[] = [];
    while (!this.take(']')) {
      if (this.at >= this.characters.length) this.refuse('a bracket is not closed');
      const first = this.member();
      const isRange = this.peek() === '-' && this.characters[this.at + 1] !== ']' && this.at + 1 < this.characters.length;
      if (!isRange) {
        ranges.push(...first);
        continue;
      }
      this.at += 1;
      const last = this.member();
      const [from, to] = [single(first), single(last)];
      if (from === undefined || to === undefined || from > to)
        this.refuse('a range that is not from a character to a later one');
      else ranges.push([from, to]);
    }
    const set = setOf(ranges);
    return isNegated ? complementOf(set) : set;
  }

  private member(): CharacterSet {
    const character = this.next();
    return character === '\\' ? this.escape(true) : setOfOne(character);
  }

  private escape(inClass: boolean): CharacterSet {
    if (this.at >= this.characters.length) this.refuse('a backslash at the end');
    const letter = this.next();
    const known = CLASSES[letter];
    if (known !== undefined) return known;
    const control = CONTROLS[letter];
    if (control !== undefined && !/\d/.test(this.peek())) return setOfPoint(control);
    if (letter === 'x') return setOfPoint(this.hexadecimal(/^[0-9a-fA-F]{2}/));
    if (letter === 'u' && this.peek() === '{') return setOfPoint(this.hexadecimal(/^\{([0-9a-fA-F]{1,6})\}/));
    if (letter === 'u') return setOfPoint(this.codeUnits());
    if (letter === 'b' && inClass) return setOfPoint(0x08);
    if (/[A-Za-z0-9]/.test(letter)) this.refuse(`\\${letter} is not supported`);
    return setOfOne(letter);
  }

  /** \uD83D\uDE00 is one character. */
  private codeUnits(): number {
    const high = this.hexadecimal(/^[0-9a-fA-F]{4}/);
    if (high < 0xd800 || high > 0xdfff) return high;
    if (!(high < 0xdc00 && this.take('\\') && this.take('u'))) return this.refuse('half a character (a lone surrogate)');
    const low = this.hexadecimal(/^[dD][c-fC-F][0-9a-fA-F]{2}/);
    return 0x10000 + (high - 0xd800) * 0x400 + (low - 0xdc00);
  }

  private hexadecimal(form: RegExp): number {
    const found = form.exec(this.characters.slice(this.at, this.at + 8).join('')) ?? this.refuse('a broken \\x or \\u');
    this.at += found[0].length;
    const value = Number.parseInt(found[1] ?? found[0], 16);
    return value <= 0x10ffff ? value : this.refuse('a character beyond U+10FFFF');
  }

  private peek(): string {
    return this.characters[this.at] ?? '';
  }

  private next(): string {
    return this.characters[this.at++] ?? '';
  }

  private take(character: string): boolean {
    if (this.peek() !== character) return false;
    this.at += 1;
    return true;
  }

  private refuse(message: string): never {
    throw new InvalidArgumentError(this.where, `${this.where}: ${message}, at character ${this.at}`);
  }
}

function setOfOne(character: string): CharacterSet {
  return setOfPoint(character.codePointAt(0) ?? 0);
}

function setOfPoint(codePoint: number): CharacterSet {
  return [[codePoint, codePoint]];
}

function single(set: CharacterSet): number | undefined {
  const [only] = set;
  return set.length === 1 && only !== undefined && only[0] === only[1] ? only[0] : undefined;
}
