/**
 * Regular expressions for the grammar library: read as JavaScript's with the u flag, written in the part of its notation
 * that it gets right. A pattern matches the whole text. For the text of a JSON string, characters that JSON escapes are
 * escaped.
 */
import { InvalidArgumentError } from '../errors.js';
import { type CharacterSet, complementOf, type Notation, setOf, without, written } from './characters.js';

export type Target = 'text' | 'JSON string';

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
const ESCAPED = setOf([
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
]);
const ESCAPES: readonly (readonly [codePoint: number, written: string])[] = [
  [0x22, '\\"'],
  [0x5c, '\\\\'],
  [0x08, '\\b'],
  [0x09, '\\t'],
  [0x0a, '\\n'],
  [0x0c, '\\f'],
  [0x0d, '\\r'],
];
const MAX_DEPTH = 100;

type Node =
  | { kind: 'set'; set: CharacterSet }
  | { kind: 'anchor'; at: '^' | '$' }
  | { kind: 'sequence'; items: Node[] }
  | { kind: 'choice'; options: Node[] }
  | { kind: 'repeat'; item: Node; times: string };

const notation: Notation = {
  choice: (parts) => `(${parts.join('|')})`,
  sequence: (parts) => parts.join(''),
  literal: (codePoint) => literal(String.fromCodePoint(codePoint)),
};

/** The pattern in the library's notation; an InvalidArgumentError naming `where` for one that cannot be. */
export function readRegex(pattern: string, where: string, target: Target = 'text'): string {
  const tree = new RegexReader(pattern, where).read();
  checkAnchors(tree, true, true, where);
  return print(tree, target, where) || '()';
}

/** Letters and digits as they are; a class of one for the rest, as an escape outside of brackets runs into what follows. */
function literal(text: string): string {
  return text.replace(/[^A-Za-z0-9\u0080-\u{10ffff}]/gu, (character) => {
    return `[\\x${(character.codePointAt(0) ?? 0).toString(16).padStart(2, '0')}]`;
  });
}

/** Empty text is nothing at all: the library has no notation for it. */
function print(node: Node, target: Target, where: string): string {
  switch (node.kind) {
    case 'set':
      return printSet(node.set, target) ?? fail(where, 'a class that no character belongs to');
    case 'anchor':
      return '';
    case 'sequence':
      return node.items.map((item) => print(item, target, where)).join('');
    case 'choice': {
      const options = node.options.map((option) => print(option, target, where));
      const texts = options.filter((option) => option !== '');
      return texts.length === 0 ? '' : `(${texts.join('|')})${texts.length < options.length ? '?' : ''}`;
    }
    case 'repeat': {
      const item = print(node.item, target, where);
      return item === '' ? '' : `(${item})${node.times}`;
    }
  }
}

function printSet(set: CharacterSet, target: Target): string | undefined {
  if (target === 'text') return written(set, notation);
  const plain = written(without(set, ESCAPED), notation);
  const holds = (codePoint: number) => set.some(([first, last]) => first <= codePoint && codePoint <= last);
  const short = ESCAPES.filter(([codePoint]) => holds(codePoint)).map(([, text]) => literal(text));
  const parts = [...(plain === undefined ? [] : [plain]), ...short];
  if (parts.length === 0) {
    // Characters that have no short escape: the long one, which other sets can do without.
    const controls = Array.from({ length: 0x20 }, (_, codePoint) => codePoint).filter(holds);
    parts.push(...controls.map((codePoint) => literal(`\\u${codePoint.toString(16).padStart(4, '0')}`)));
  }
  return parts.length > 1 ? `(${parts.join('|')})` : parts[0];
}

/** ^ and $ match at the ends only, where they change nothing. */
function checkAnchors(node: Node, isStart: boolean, isEnd: boolean, where: string): void {
  switch (node.kind) {
    case 'anchor':
      if (node.at === '^' ? !isStart : !isEnd)
        fail(where, `${node.at} is supported at the ${node.at === '^' ? 'start' : 'end'} only`);
      return;
    case 'sequence': {
      const isNothing = (item: Node) => item.kind === 'anchor';
      for (const [i, item] of node.items.entries()) {
        const first = isStart && node.items.slice(0, i).every(isNothing);
        checkAnchors(item, first, isEnd && node.items.slice(i + 1).every(isNothing), where);
      }
      return;
    }
    case 'choice':
      for (const option of node.options) checkAnchors(option, isStart, isEnd, where);
      return;
    case 'repeat':
      checkAnchors(node.item, false, false, where);
  }
}

class RegexReader {
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
    return fail(this.where, `${message}, at character ${this.at}`);
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

function fail(where: string, message: string): never {
  throw new InvalidArgumentError(where, `${where}: ${message}`);
}
