/**
 * Lossless JSON. JSON.parse turns 1.0 into 1, rounds long integers and moves keys that look like integers to the front;
 * a model reads tool definitions as text, so each of these changes its prompt. Here numbers keep their text and objects
 * are Maps in the order written.
 */
import { InvalidArgumentError } from './errors.js';

export type JsonValue = null | boolean | string | JsonNumber | JsonValue[] | Map<string, JsonValue>;

/** A number as it was written. */
export class JsonNumber {
  readonly text: string;

  constructor(text: string) {
    if (!WHOLE_NUMBER.test(text)) throw new InvalidArgumentError('text', `expected a JSON number, found ${excerpt(text)}`);
    this.text = text;
  }

  valueOf(): number {
    return Number(this.text);
  }

  toString(): string {
    return this.text;
  }
}

const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const WHOLE_NUMBER = new RegExp(`^(?:${NUMBER.source})$`);
// A string as far as its closing quote; what stands between is checked by JSON.parse.
const STRING = /"[^"\\]*(?:\\.[^"\\]*)*"/sy;
const SPACE = /[ \t\n\r]*/y;
const MAX_DEPTH = 256;

/** Parses JSON text. Of a key that appears twice, the last value stays, in the first place, as Python's `json` does. */
export function parseJson(text: string): JsonValue {
  const parser = new Parser(text);
  return parser.document();
}

class Parser {
  private at = 0;
  private depth = 0;

  constructor(private readonly text: string) {}

  document(): JsonValue {
    const value = this.value();
    if (this.peek() !== '') this.fail('the end of the text');
    return value;
  }

  private value(): JsonValue {
    const first = this.peek();
    if (first === '{' || first === '[') {
      if (++this.depth > MAX_DEPTH) this.fail(`at most ${MAX_DEPTH} levels of nesting`);
      const value = first === '{' ? this.object() : this.array();
      this.depth -= 1;
      return value;
    }
    if (first === '"') return this.string();
    for (const [word, value] of WORDS) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    return new JsonNumber(this.match(NUMBER) ?? this.fail('a value'));
  }

  private object(): Map<string, JsonValue> {
    const result = new Map<string, JsonValue>();
    this.at += 1;
    if (this.take('}')) return result;
    do {
      if (this.peek() !== '"') this.fail('a key in quotes');
      const key = this.string();
      if (!this.take(':')) this.fail('":"');
      result.set(key, this.value());
    } while (this.take(','));
    if (!this.take('}')) this.fail('"," or "}"');
    return result;
  }

  private array(): JsonValue[] {
    const result: JsonValue[] = [];
    this.at += 1;
    if (this.take(']')) return result;
    do result.push(this.value());
    while (this.take(','));
    if (!this.take(']')) this.fail('"," or "]"');
    return result;
  }

  private string(): string {
    const start = this.at;
    const quoted = this.match(STRING) ?? this.fail('a closing quote');
    try {
      return JSON.parse(quoted) as string;
    } catch {
      this.at = start;
      return this.fail('a valid string');
    }
  }

  /** The next character that is not white space, or '' at the end. */
  private peek(): string {
    this.match(SPACE);
    return this.text.charAt(this.at);
  }

  private take(character: string): boolean {
    if (this.peek() !== character) return false;
    this.at += 1;
    return true;
  }

  private match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text)?.[0];
    if (found !== undefined) this.at += found.length;
    return found;
  }

  private fail(expected: string): never {
    const found = this.at < this.text.length ? excerpt(this.text.slice(this.at, this.at + 20)) : 'the end of the text';
    throw new InvalidArgumentError('json', `not JSON at offset ${this.at}: expected ${expected}, found ${found}`);
  }
}

const WORDS: readonly (readonly [string, boolean | null])[] = [
  ['true', true],
  ['false', false],
  ['null', null],
];

function excerpt(text: string): string {
  return JSON.stringify(text.slice(0, 40));
}
