/**
 * The Jinja interpreter of @huggingface/jinja with what chat templates need beyond it:
 * - string methods that do not see the markers of markers.ts, so that a template decides as if they were not there;
 * - Python's meaning of `strip('\n')` and its kin, which take a set of characters;
 * - `tojson` that keeps number text;
 * - an end to templates that loop or grow without one.
 */
import type { JsonNumber } from '../json.js';
import { Environment, Interpreter, type Node, type Value } from './jinja.js';
import { escapeRegExp, type Markers } from './markers.js';

/** The fields of syntax nodes read here. */
interface Call extends Node {
  callee: Member & Identifier;
  args: Node[];
}
interface Identifier extends Node {
  value: string;
}
interface Member extends Node {
  object: Node;
  property: Identifier;
  computed: boolean;
}
interface Binary extends Node {
  operator: { value: string };
  left: Node;
  right: Node;
}
interface Filter extends Node {
  operand: Node;
  filter: Call & Identifier;
}
interface KeywordArgument extends Node {
  key: Identifier;
  value: Node;
}

/** Stands in a node for an operand that has been evaluated; no template can write this name. */
const EVALUATED = { type: 'Identifier', value: '(evaluated)' };

const MAX_MS = 5_000;
const MAX_CHARACTERS = 1 << 26;
const MAX_ITEMS = 1 << 20;
/** What `str.strip()` removes in Python. */
const PYTHON_SPACES = '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000';
const PYTHON_SPACE = new RegExp(`[${PYTHON_SPACES}]`);

/** `raise_exception` of a template. */
export class TemplateRefusal extends Error {}

/** A template that does not end, or makes more text than a prompt can hold. */
export class TemplateLimit extends Error {}

export class ChatInterpreter extends Interpreter {
  private readonly deadline = performance.now() + MAX_MS;
  private steps = 0;

  constructor(
    private readonly markers: Markers,
    environment: Environment,
  ) {
    super(environment);
  }

  override evaluate(node: Node | undefined, environment: Environment): Value {
    if ((++this.steps & 1023) === 0 && performance.now() > this.deadline) {
      throw new TemplateLimit(`the template ran for more than ${MAX_MS / 1000} s`);
    }
    const value = this.evaluateMarked(node, environment) ?? super.evaluate(node, environment);
    if (isString(value) && value.value.length > MAX_CHARACTERS) {
      throw new TemplateLimit(`the template made more than ${MAX_CHARACTERS} characters`);
    }
    if (isArray(value) && value.value.length > MAX_ITEMS) {
      throw new TemplateLimit(`the template made a list of more than ${MAX_ITEMS} items`);
    }
    return value;
  }

  /** The nodes whose meaning differs from the package's; undefined leaves the node to it. */
  private evaluateMarked(node: Node | undefined, environment: Environment): Value | undefined {
    switch (node?.type) {
      case 'CallExpression':
        return this.evaluateMethod(node as Call, environment);
      case 'FilterExpression':
        return this.evaluateFilter(node as Filter, environment);
      case 'BinaryExpression':
        return this.evaluateComparison(node as Binary, environment);
      case 'MemberExpression':
        return this.evaluateMember(node as Member, environment);
      default:
        return undefined;
    }
  }

  private evaluateMethod(node: Call, environment: Environment): Value | undefined {
    const { callee } = node;
    if (callee.type !== 'MemberExpression' || callee.computed || !STRING_METHODS.has(callee.property.value)) return undefined;
    const object = this.evaluate(callee.object, environment);
    if (!isString(object)) {
      const rest: Call = { ...node, callee: { ...callee, object: EVALUATED } };
      return this.resume(rest, object, environment);
    }
    return this.stringMethod(callee.property.value, object.value, this.arguments(node.args, environment));
  }

  private evaluateFilter(node: Filter, environment: Environment): Value | undefined {
    const called = node.filter.type === 'CallExpression';
    const name = called ? (node.filter.callee as Identifier).value : node.filter.value;
    if (name !== 'tojson' && name !== 'trim' && name !== 'length' && name !== 'replace') return undefined;
    const operand = this.evaluate(node.operand, environment);
    const args = called ? this.arguments(node.filter.args, environment) : { positional: [], named: new Map<string, Value>() };
    if (name === 'tojson') return string(this.toJson(operand, jsonFormat(args.named), 0));
    if (!isString(operand)) {
      const rest: Filter = { ...node, operand: EVALUATED };
      return this.resume(rest, operand, environment);
    }
    if (name === 'length') return integer(this.markers.strip(operand.value).length);
    return this.stringMethod(name === 'trim' ? 'strip' : name, operand.value, args);
  }

  private evaluateComparison(node: Binary, environment: Environment): Value | undefined {
    const operator = node.operator.value;
    if (operator !== '==' && operator !== '!=' && operator !== 'in' && operator !== 'not in') return undefined;
    const left = this.evaluate(node.left, environment);
    const right = this.evaluate(node.right, environment);
    const holds = operator.endsWith('in') ? this.isIn(left, right) : this.isEqual(left, right);
    return boolean(holds === (operator === '==' || operator === 'in'));
  }

  /** As Python compares: 1, 1.0 and true are equal, "1" is none of them, lists and objects go by what they hold. */
  private isEqual(left: Value, right: Value): boolean {
    if (isString(left) && isString(right)) return this.markers.strip(left.value) === this.markers.strip(right.value);
    if (isNumeric(left) && isNumeric(right)) return Number(left.value) === Number(right.value);
    if (isArray(left) && isArray(right)) {
      return (
        left.value.length === right.value.length && left.value.every((item, i) => this.isEqual(item, right.value[i] as Value))
      );
    }
    if (left.value instanceof Map && right.value instanceof Map) {
      const other = right.value as Map<string, Value>;
      const isSame = ([key, item]: [string, Value]) => other.has(key) && this.isEqual(item, other.get(key) as Value);
      return left.value.size === other.size && [...(left.value as Map<string, Value>)].every(isSame);
    }
    return left.type === right.type && left.value === right.value;
  }

  private isIn(left: Value, right: Value): boolean {
    if (isArray(right)) return right.value.some((item) => this.isEqual(left, item));
    if (right.type === 'UndefinedValue') return false;
    if (isString(left) && isString(right)) return this.pattern('', left.value, '').test(right.value);
    if (isString(left) && right.value instanceof Map) return right.value.has(left.value);
    throw new Error(`cannot look for ${left.type} in ${right.type}`);
  }

  /** Parts of nothing are an error, as in Jinja; `text[1:]` and `text[0]` count characters without markers. */
  private evaluateMember(node: Member, environment: Environment): Value {
    const object = this.evaluate(node.object, environment);
    if (object.type === 'UndefinedValue') throw new Error(`${nameOf(node.object)} is undefined`);
    const rest: Member = { ...node, object: EVALUATED };
    if (!isString(object)) return this.resume(rest, object, environment);
    const part = this.resume(rest, string(this.markers.strip(object.value)), environment);
    return isString(part) ? string(this.derived(object.value, part.value)) : part;
  }

  /** Lets the package evaluate a node of which one operand, EVALUATED, is known already. */
  private resume(node: Node, operand: Value, environment: Environment): Value {
    const scope = new Environment(environment);
    scope.setVariable(EVALUATED.value, operand);
    return super.evaluate(node, scope);
  }

  private arguments(nodes: readonly Node[], environment: Environment): Arguments {
    const positional: Value[] = [];
    const named = new Map<string, Value>();
    for (const node of nodes) {
      if (node.type === 'KeywordArgumentExpression') {
        const argument = node as KeywordArgument;
        named.set(argument.key.value, this.evaluate(argument.value, environment));
      } else {
        positional.push(this.evaluate(node, environment));
      }
    }
    return { positional, named };
  }

  private stringMethod(name: string, text: string, { positional, named }: Arguments): Value {
    const [first, second, third] = positional;
    switch (name) {
      case 'strip':
        return string(this.trim(text, first ?? named.get('chars'), true, true));
      case 'lstrip':
        return string(this.trim(text, first ?? named.get('chars'), true, false));
      case 'rstrip':
        return string(this.trim(text, first ?? named.get('chars'), false, true));
      case 'startswith':
        return boolean(this.affixes(name, first).some((affix) => this.pattern('^', affix, '').test(text)));
      case 'endswith':
        return boolean(this.affixes(name, first).some((affix) => this.pattern('', affix, '$').test(text)));
      case 'split':
        return array(this.split(text, first ?? named.get('sep'), second ?? named.get('maxsplit')));
      default:
        return string(this.replace(text, first, second, third ?? named.get('count')));
    }
  }

  private trim(text: string, set: Value | undefined, left: boolean, right: boolean): string {
    const removed = set === undefined || set.type === 'NullValue' ? undefined : new Set(expectString('strip', set));
    const isRemoved = (character: string) =>
      character === this.markers.marker || (removed ? removed.has(character) : PYTHON_SPACE.test(character));
    let start = 0;
    let end = text.length;
    if (left) while (start < end && isRemoved(text.charAt(start))) start += 1;
    if (right) while (end > start && isRemoved(text.charAt(end - 1))) end -= 1;
    return this.derived(text, text.slice(start, end));
  }

  private affixes(name: string, value: Value | undefined): string[] {
    const values = value !== undefined && isArray(value) ? value.value : [value];
    return values.map((affix) => expectString(name, affix));
  }

  private split(text: string, separator: Value | undefined, limit: Value | undefined): Value[] {
    const most = limit === undefined ? -1 : Number(limit.value);
    const pattern =
      separator === undefined || separator.type === 'NullValue'
        ? new RegExp(`[${PYTHON_SPACES}]+`, 'g')
        : this.pattern('', expectString('split', separator, 'a separator'), '', 'g');
    const source = separator === undefined || separator.type === 'NullValue' ? this.trim(text, undefined, true, true) : text;
    const pieces: string[] = [];
    let from = 0;
    for (const match of source.matchAll(pattern)) {
      if (pieces.length === most) break;
      pieces.push(source.slice(from, match.index));
      from = match.index + match[0].length;
    }
    pieces.push(source.slice(from));
    return pieces.map((piece) => string(pieces.length === 1 ? piece : this.derived(text, piece)));
  }

  private replace(text: string, from: Value | undefined, to: Value | undefined, count: Value | undefined): string {
    const replacement = expectString('replace', to);
    let left = count === undefined || count.type === 'NullValue' || Number(count.value) < 0 ? Infinity : Number(count.value);
    const changed = text.replace(this.pattern('', expectString('replace', from), '', 'g'), (match) =>
      left-- > 0 ? replacement : match,
    );
    return changed === text ? text : this.derived(text + replacement, changed);
  }

  /** What was cut out of a message is guarded like one; spellings that the template's own text holds stay whole. */
  private derived(source: string, result: string): string {
    if (this.markers.holdsSpelling(source)) return this.markers.guardEnds(result);
    return this.markers.guard(this.markers.strip(result));
  }

  private pattern(before: string, needle: string, after: string, flags = ''): RegExp {
    const marker = `${this.markers.marker}*`;
    const units = this.markers.strip(needle).split('').map(escapeRegExp);
    return new RegExp(`${before}${before && marker}${units.join(marker)}${after && marker}${after}`, flags);
  }

  private toJson(value: Value, format: JsonFormat, depth: number): string {
    if (isString(value)) return this.quote(value.value, format);
    const isList = isArray(value);
    if (!isList && !(value.value instanceof Map)) {
      if (value.type === 'NullValue' || value.type === 'UndefinedValue') return 'null';
      if (value.type === 'FunctionValue') throw new Error('a function has no JSON');
      return numberText.get(value) ?? value.toString();
    }
    const items = isList
      ? value.value.map((item) => this.toJson(item, format, depth + 1))
      : entriesOf(value, format.sortKeys).map(
          ([key, item]) => this.quote(key, format) + format.keySeparator + this.toJson(item, format, depth + 1),
        );
    const [open, close] = isList ? '[]' : '{}';
    if (items.length === 0 || format.indent === 0) return open + items.join(format.itemSeparator) + close;
    const outer = `\n${' '.repeat(format.indent * depth)}`;
    const inner = outer + ' '.repeat(format.indent);
    return open + inner + items.join(format.itemSeparator + inner) + outer + close;
  }

  private quote(text: string, format: JsonFormat): string {
    if (!format.ensureAscii) return JSON.stringify(text);
    const toAscii = (part: string) =>
      part.replace(/[\x7f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
    return JSON.stringify(text).split(this.markers.marker).map(toAscii).join(this.markers.marker);
  }
}

interface Arguments {
  positional: Value[];
  named: Map<string, Value>;
}

interface JsonFormat {
  indent: number;
  ensureAscii: boolean;
  sortKeys: boolean;
  itemSeparator: string;
  keySeparator: string;
}

const STRING_METHODS = new Set(['strip', 'lstrip', 'rstrip', 'startswith', 'endswith', 'split', 'replace']);

/** The separators are those of Python's json.dumps. */
function jsonFormat(named: ReadonlyMap<string, Value>): JsonFormat {
  const indent = Number(named.get('indent')?.value ?? 0);
  if (!(indent >= 0 && indent <= 64)) throw new Error('tojson: indent must be between 0 and 64');
  const separators = named.get('separators');
  const [item, key] = separators !== undefined && isArray(separators) ? separators.value : [];
  return {
    indent,
    ensureAscii: named.get('ensure_ascii')?.value === true,
    sortKeys: named.get('sort_keys')?.value === true,
    itemSeparator: item === undefined ? (indent > 0 ? ',' : ', ') : expectString('tojson', item),
    keySeparator: key === undefined ? ': ' : expectString('tojson', key),
  };
}

function entriesOf(value: Value, sorted: boolean): [string, Value][] {
  const entries = [...(value.value as Map<string, Value>)];
  return sorted ? entries.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)) : entries;
}

function nameOf(node: Node): string {
  if (node.type === 'Identifier') return (node as Identifier).value;
  if (node.type !== 'MemberExpression') return 'a value';
  const { object, property, computed } = node as Member;
  return computed ? `a part of ${nameOf(object)}` : `${nameOf(object)}.${property.value}`;
}

function expectString(method: string, value: Value | undefined, what = 'a string'): string {
  if (value === undefined || !isString(value))
    throw new Error(`${method}() expects ${what}, found ${value?.type ?? 'nothing'}`);
  if (what !== 'a string' && value.value === '') throw new Error(`${method}() expects ${what}, found an empty one`);
  return value.value;
}

// Values of the package are made by its own classes, which it keeps to itself: Environment.set makes one of each.

type StringValue = Value & { readonly value: string };
type ArrayValue = Value & { readonly value: Value[] };

const sample = (value: unknown): Value => new Environment().set('sample', value);
const classOf = <T>(value: unknown) => sample(value).constructor as new (value: T) => Value;
const StringClass = classOf<string>('');
const IntegerClass = classOf<number>(1);
const FloatClass = classOf<number>(0.5);
const BooleanClass = classOf<boolean>(true);
const NullClass = classOf<null>(null);
const ArrayClass = classOf<Value[]>([]);
const ObjectClass = classOf<Map<string, Value>>({});

/** The text of numbers that came from JSON text. */
const numberText = new WeakMap<Value, string>();

export const string = (value: string): Value => new StringClass(value);
export const boolean = (value: boolean): Value => new BooleanClass(value);
export const nothing = (): Value => new NullClass(null);
export const array = (value: Value[]): Value => new ArrayClass(value);
export const object = (value: Map<string, Value>): Value => new ObjectClass(value);
const integer = (value: number): Value => new IntegerClass(value);

export function number(value: number | bigint | JsonNumber): Value {
  if (typeof value === 'number') return Number.isInteger(value) ? integer(value) : new FloatClass(value);
  const text = String(value);
  const result = /^-?\d+$/.test(text) ? integer(Number(value)) : new FloatClass(Number(value));
  numberText.set(result, text);
  return result;
}

function isString(value: Value): value is StringValue {
  return value instanceof StringClass;
}

function isNumeric(value: Value): boolean {
  return [IntegerClass, FloatClass, BooleanClass].some((type) => value instanceof type);
}

function isArray(value: Value): value is ArrayValue {
  return value instanceof ArrayClass;
}
