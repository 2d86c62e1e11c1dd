/** Grammars in EBNF as the library takes them, but for classes of characters beyond ASCII, which it does not get right. */
import { type CharacterSet, complementOf, type Notation, setOf, written } from './characters.js';

const notation: Notation = {
  choice: (parts) => `(${parts.join(' | ')})`,
  sequence: (parts) => parts.join(' '),
  literal: (codePoint) => `"\\U${codePoint.toString(16).padStart(8, '0')}"`,
};

/** Text in quotes, a comment, or a class; the first two may look like they hold classes. */
const PARTS = /"(?:[^"\\\n]|\\.)*"|#[^\n]*|\[(\^?)((?:[^\]\\\n]|\\.)*)\]/gsu;
const MEMBER = /\\x([0-9a-fA-F]{1,2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|(.)/gsu;
const CONTROLS: { readonly [letter: string]: number } = { n: 0x0a, r: 0x0d, t: 0x09, 0: 0 };

export function readGrammar(text: string): string {
  return text.replace(PARTS, (part: string, negated: string | undefined, members: string | undefined) => {
    if (members === undefined || !/[^ -~]|\\[xuU]/.test(members)) return part;
    const set = setOfMembers(members);
    // A class that cannot be read is left to the library, which says what is wrong with it.
    return (set && written(negated === '^' ? complementOf(set) : set, notation)) ?? part;
  });
}

function setOfMembers(text: string): CharacterSet | undefined {
  const points = [...text.matchAll(MEMBER)].map(([whole, x, u, long, letter, plain]) => {
    const digits = x ?? u ?? long;
    if (digits !== undefined) return { point: Number.parseInt(digits, 16), isDash: false };
    const point = (letter === undefined ? undefined : CONTROLS[letter]) ?? (letter ?? plain ?? '').codePointAt(0) ?? 0;
    return { point, isDash: whole === '-' };
  });
  const ranges: [number, number][] = [];
  for (let i = 0; i < points.length; i++) {
    const first = points[i]?.point ?? 0;
    const last = points[i + 1]?.isDash ? points[i + 2]?.point : undefined;
    if (last !== undefined) i += 2;
    if (Math.max(first, last ?? first) > 0x10ffff || (last ?? first) < first) return undefined;
    ranges.push([first, last ?? first]);
  }
  return setOf(ranges);
}
