/**
 * Regular expressions for the grammar library: read as JavaScript's with the u flag, written in the part of its notation
 * that it gets right. A pattern matches the whole text. For the text of a JSON string, characters that JSON escapes are
 * escaped.
 */
import { InvalidArgumentError } from '../errors.js';
import { type CharacterSet, type Notation, setOf, without, written } from './characters.js';
import { type Node, RegexReader } from './regex_reader.js';

export type Target = 'text' | 'JSON string';

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

function fail(where: string, message: string): never {
  throw new InvalidArgumentError(where, `${where}: ${message}`);
}
