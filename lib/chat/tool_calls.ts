/**
 * Tool calls in the text of an answer: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, read character by
 * character, so that however the text is cut into pieces the result is the same.
 *
 * A call is given out as soon as its name is known and its arguments begin; they follow as they come, exactly as written.
 * What looks like a call and is none by then is text again. White space before, between and after calls belongs to none.
 */
import { randomBytes } from 'node:crypto';
import { InvalidArgumentError } from '../errors.js';
import type { JsonObject, StructuredOutput, Tool } from '../types.js';

export interface ToolCallPiece {
  /** Which call of the answer. */
  index: number;
  /** With the first piece of a call only, as is `name`. */
  id?: string;
  name?: string;
  /** The next part of the arguments' text. */
  arguments?: string;
}

export interface ToolCallEvents {
  text: string;
  calls: ToolCallPiece[];
}

const OPEN = '<tool_call>';
const CLOSE = '</tool_call>';
const SPACE = /[ \t\r\n]/;

type State = 'text' | 'object' | 'key' | 'in key' | 'colon' | 'value' | 'in value' | 'next' | 'after';

export class ToolCallParser {
  private state: State = 'text';
  private events: ToolCallEvents = { text: '', calls: [] };
  /** Calls given out so far; with `isOut`, the present one is the last of them. */
  private count = 0;
  private isOut = false;
  /** What came since the last text or call was given out: white space, a part of a tag, a call that may prove to be none. */
  private held = '';
  /** Characters of the tag `state` looks for that have come: the opening one in `text`, the closing one in `after`. */
  private tag = 0;
  /** White space that follows a call goes out only before other text. */
  private followsCall = false;

  private key = '';
  private name: string | undefined;
  /** Arguments that came before the name. */
  private early: string | undefined;
  private value = '';
  private scanner = new ValueScanner();

  push(text: string): ToolCallEvents {
    this.read(text);
    return this.take();
  }

  /** At the end of the answer: what was held back. */
  flush(): ToolCallEvents {
    // What has come of a closing tag belongs to its call.
    const isText = this.state !== 'after' && !(this.followsCall && this.held.trim() === '');
    if (isText) this.events.text += this.held;
    this.held = '';
    return this.take();
  }

  private take(): ToolCallEvents {
    const { events } = this;
    this.events = { text: '', calls: [] };
    return events;
  }

  private read(text: string): void {
    for (const character of text) {
      if (this.state === 'text') this.readText(character);
      else if (this.state === 'after') this.readAfter(character);
      else if (!this.readCall(character)) this.giveUp(character);
    }
  }

  private readText(character: string): void {
    if (this.tag > 0 && character === OPEN[this.tag]) {
      this.held += character;
      this.tag += 1;
      if (this.tag === OPEN.length) this.beginCall();
      return;
    }
    this.tag = character === '<' ? 1 : 0;
    if (this.tag === 1 && this.held.includes('<')) this.letOut();
    this.held += character;
    if (this.tag === 0 && !SPACE.test(character)) this.letOut();
  }

  private letOut(): void {
    this.events.text += this.held;
    this.held = '';
    this.followsCall = false;
  }

  private beginCall(): void {
    this.state = 'object';
    this.tag = 0;
    this.isOut = false;
    this.name = undefined;
    this.early = undefined;
  }

  /** White space and the closing tag; anything else is text. */
  private readAfter(character: string): void {
    this.held += character;
    if (this.tag === 0 && SPACE.test(character)) return;
    const matches = character === CLOSE[this.tag];
    this.tag = matches ? this.tag + 1 : 0;
    if (matches && this.tag < CLOSE.length) return;
    this.state = 'text';
    this.tag = 0;
    this.followsCall = true;
    const rest = matches ? '' : this.held;
    this.held = '';
    this.read(rest);
  }

  /** False when the character cannot be part of a call. */
  private readCall(character: string): boolean {
    if (!this.isOut) this.held += character;
    if (this.state === 'in key') return this.readKey(character);
    if (this.state === 'in value') return this.readValue(character);
    if (SPACE.test(character)) return true;
    switch (this.state) {
      case 'object':
        this.state = 'key';
        return character === '{';
      case 'key':
        this.state = 'in key';
        return this.begin(character) && character === '"';
      case 'colon':
        this.state = 'value';
        return character === ':';
      case 'value':
        this.state = 'in value';
        if (!this.begin(character)) return false;
        if (this.streams) this.giveOut('');
        return this.pass(character);
      default:
        if (character === ',') this.state = 'key';
        return character === ',' || (character === '}' && this.finish());
    }
  }

  /** The arguments go out as they come; those written as a string must be whole to be unquoted. */
  private get streams(): boolean {
    return this.key === 'arguments' && this.name !== undefined && !this.isOut && !this.scanner.isString;
  }

  private begin(character: string): boolean {
    this.scanner = new ValueScanner();
    this.value = '';
    return this.scanner.read(character) !== 'wrong';
  }

  private readKey(character: string): boolean {
    this.value += character;
    const step = this.scanner.read(character);
    if (step !== 'ended') return step === 'goes on';
    this.key = unquoted(`"${this.value}`);
    this.state = 'colon';
    return true;
  }

  private readValue(character: string): boolean {
    const step = this.scanner.read(character);
    if (step === 'wrong') return false;
    if (step === 'over') {
      if (!this.endValue()) return false;
      // A number or a word ends before this character, which is what comes next.
      this.state = 'next';
      if (!this.isOut) this.held = this.held.slice(0, -character.length);
      return this.readCall(character);
    }
    this.pass(character);
    if (step === 'goes on') return true;
    this.state = 'next';
    return this.endValue();
  }

  /** One more character of the value; of a call that is out, for its reader. */
  private pass(character: string): boolean {
    if (this.isOut && this.key === 'arguments' && !this.scanner.isString) this.addArguments(character);
    else this.value += character;
    return true;
  }

  private endValue(): boolean {
    if (this.isOut) return true;
    if (this.key === 'name') {
      this.name = this.scanner.isString ? unquoted(this.value) : '';
      if (this.name === '') return false;
      if (this.early !== undefined) this.giveOut(this.early);
    } else if (this.key === 'arguments') {
      this.early = this.scanner.isString ? unquoted(this.value) : this.value;
      if (this.name !== undefined) this.giveOut(this.early);
    }
    return true;
  }

  /** The object's closing brace: a call without arguments has none. */
  private finish(): boolean {
    if (!this.isOut && this.name === undefined) return false;
    if (!this.isOut) this.giveOut('{}');
    this.state = 'after';
    return true;
  }

  private giveOut(text: string): void {
    const id = `call_${randomBytes(12).toString('hex')}`;
    this.events.calls.push({ index: this.count++, id, name: this.name ?? '' });
    this.isOut = true;
    this.held = '';
    this.addArguments(text);
  }

  private addArguments(text: string): void {
    if (text === '') return;
    const last = this.events.calls.at(-1);
    if (last?.arguments !== undefined && last.index === this.count - 1) last.arguments += text;
    else this.events.calls.push({ index: this.count - 1, arguments: text });
  }

  /** No call after all: its tag is text, and what follows is read as text. The rest of one that is out is text too. */
  private giveUp(character: string): void {
    const wasOut = this.isOut;
    const end = this.held.indexOf(OPEN) + OPEN.length;
    const rest = wasOut ? character : this.held.slice(end);
    this.held = wasOut ? '' : this.held.slice(0, end);
    this.tag = 0;
    this.state = wasOut ? 'after' : 'text';
    if (!wasOut) this.letOut();
    this.read(rest);
  }
}

/** Finds the end of a JSON value. Inside of lists and objects it sees strings and brackets only. */
class ValueScanner {
  isString = false;
  private depth = 0;
  private inString = false;
  private escaped = false;
  private begun = false;

  /** `over`: it ended before this character. */
  read(character: string): 'goes on' | 'ended' | 'over' | 'wrong' {
    if (this.inString) {
      if (this.escaped) this.escaped = false;
      else if (character === '\\') this.escaped = true;
      else if (character === '"') this.inString = false;
      return this.inString || this.depth > 0 ? 'goes on' : 'ended';
    }
    if (!this.begun) {
      this.begun = true;
      this.isString = character === '"';
      if (!/[-"{[0-9tfn]/.test(character)) return 'wrong';
    } else if (this.depth === 0) return /[-+.0-9A-Za-z]/.test(character) ? 'goes on' : 'over';
    if (character === '"') this.inString = true;
    else if (character === '{' || character === '[') this.depth += 1;
    else if (character === '}' || character === ']') this.depth -= 1;
    else if (character === '<') return 'wrong';
    return this.depth > 0 || !/[}\]]/.test(character) ? 'goes on' : 'ended';
  }
}

/** The text a JSON string stands for; one that is not quite JSON as it is written. */
function unquoted(text: string): string {
  try {
    return String(JSON.parse(text));
  } catch {
    return text.slice(1, -1);
  }
}

/**
 * The form of an answer that is calls of these tools: of any (`required`) or of the named one; one call or, `parallel`,
 * one or more.
 */
export function toolCallGrammar(
  tools: readonly Tool[],
  choice: 'required' | { name: string },
  parallel: boolean,
): StructuredOutput {
  const offered = tools.map(({ function: { name, parameters } }) => ({ name, parameters: parameters ?? anyArguments }));
  const toolCalls = choice === 'required' ? offered : offered.filter(({ name }) => name === choice.name);
  if (toolCalls.length > 0) return { toolCalls, parallel: parallel && choice === 'required' };
  throw new InvalidArgumentError('tools', 'tools: the chosen tool is not among them', 'name one of the tools, or offer one');
}

const anyArguments: JsonObject = { type: 'object' };
