/**
 * JSON schemas before they become grammars. The grammar library passes over keywords it does not know and over some
 * combinations of those it does; an answer could then break the schema it was promised to follow. Such schemas are
 * refused here, with the place and the keyword, and what only needs spelling out is spelled out.
 */
import { InvalidArgumentError } from '../errors.js';
import { JsonNumber, type JsonValue } from '../json.js';
import { boundsOf, integerRange, numberRange } from './number_range.js';
import { readRegex } from './regex.js';

type Schema = Map<string, JsonValue>;

/** Keywords of the JSON Schema vocabularies that restrict a value in a way the grammar would not. */
const UNSUPPORTED = [
  ...['not', 'if', 'then', 'else', 'multipleOf', 'contains', 'minContains', 'maxContains', 'dependentRequired'],
  ...['dependentSchemas', 'dependencies', '$dynamicRef', '$recursiveRef', 'additionalItems'],
];
/** One of these makes up a schema alone: the grammar follows the first and passes over the rest. */
const WHOLE = ['$ref', 'const', 'enum', 'anyOf', 'oneOf', 'allOf'];
const OF_OBJECT = [
  ...['properties', 'required', 'additionalProperties', 'unevaluatedProperties', 'patternProperties', 'propertyNames'],
  ...['minProperties', 'maxProperties'],
];
const OF_ARRAY = ['items', 'prefixItems', 'minItems', 'maxItems', 'unevaluatedItems'];
const OF_STRING = ['pattern', 'format', 'minLength', 'maxLength'];
const OF_NUMBER = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'];
const TYPED: readonly (readonly [type: string, keywords: readonly string[]])[] = [
  ['object', OF_OBJECT],
  ['array', OF_ARRAY],
  ['string', OF_STRING],
  ['number', OF_NUMBER],
];

/** Stands for a range of numbers where the grammar library would write its own. */
export const rangeMark = (index: number): string => `sigmoe number range ${index}`;

/**
 * The schema as the grammar library needs it; `where` names its place in errors. Ranges of numbers go to `ranges` and
 * leave their mark in the schema.
 */
export function readSchema(value: JsonValue, where: string, ranges: string[]): JsonValue {
  if (typeof value === 'boolean') return value;
  if (!(value instanceof Map)) fail(where, 'expected a schema: an object, true or false');
  const schema: Schema = new Map(value);
  checkKeywords(schema, where);

  for (const name of ['$defs', 'definitions']) inEach(schema, name, where, ranges);
  for (const name of ['properties', 'patternProperties']) inEach(schema, name, where, ranges);
  const named = schema.get('patternProperties');
  if (named instanceof Map) {
    const path = `${where}.patternProperties`;
    schema.set('patternProperties', new Map([...named].map(([name, inner]) => [readRegex(name, path, 'JSON string'), inner])));
  }
  setPattern(schema, where);
  for (const name of ['additionalProperties', 'unevaluatedProperties', 'propertyNames', 'items', 'unevaluatedItems']) {
    const inner = schema.get(name);
    if (inner !== undefined) schema.set(name, readSchema(inner, `${where}.${name}`, ranges));
  }
  for (const name of ['anyOf', 'oneOf', 'allOf', 'prefixItems']) {
    const list = schema.get(name);
    if (list === undefined) continue;
    if (!Array.isArray(list) || list.length === 0) fail(`${where}.${name}`, 'expected a list of schemas');
    schema.set(
      name,
      list.map((inner, i) => readSchema(inner, `${where}.${name}[${i}]`, ranges)),
    );
  }
  if (WHOLE.some((name) => schema.has(name))) return schema;
  setType(schema);
  spellOut(schema, where);
  return withRange(schema, where, ranges);
}

function checkKeywords(schema: Schema, where: string): void {
  const refused =
    UNSUPPORTED.find((name) => schema.has(name)) ?? (schema.get('uniqueItems') === true ? 'uniqueItems' : undefined);
  if (refused !== undefined) fail(where, `${refused} is not supported: the answer could break it`);

  const [whole, other] = WHOLE.filter((name) => schema.has(name));
  const typed = [...OF_OBJECT, ...OF_ARRAY, ...OF_STRING, ...OF_NUMBER].find((name) => schema.has(name));
  const beside = other ?? typed ?? (whole === 'const' || whole === 'enum' ? undefined : schema.has('type') && 'type');
  if (whole !== undefined && beside) fail(where, `${beside} beside ${whole} is not supported: put it into the inner schema`);
  checkNames(schema, where);
  const all = schema.get('allOf');
  if (Array.isArray(all) && all.length > 1) fail(where, 'allOf of more than one schema is not supported: merge them');

  for (const name of OF_NUMBER) {
    if (schema.has(name) && !(schema.get(name) instanceof JsonNumber)) fail(`${where}.${name}`, 'expected a number');
  }
}

/** What the grammar lets through twice under one name, or without a name's own description. */
function checkNames(schema: Schema, where: string): void {
  const refuse = (name: string, beside: string) =>
    fail(where, `${name} beside ${beside} is not supported: the answer could break it`);
  const has = (name: string) => schema.has(name) && schema.get(name) !== true;
  const described = ['properties', 'required', 'patternProperties', 'additionalProperties', 'unevaluatedProperties'];
  const another = schema.has('propertyNames') ? described.find(has) : undefined;
  if (another !== undefined) refuse(another, 'propertyNames');
  const properties = schema.get('properties');
  for (const name of ['additionalProperties', 'unevaluatedProperties', 'patternProperties']) {
    const describes = has(name) && schema.get(name) !== false;
    if (describes && properties instanceof Map && properties.size > 0) refuse(name, 'properties');
  }
  if (schema.has('patternProperties') && has('required')) refuse('required', 'patternProperties');
  const least = schema.get('minProperties');
  if (least instanceof JsonNumber && least.valueOf() > 1)
    fail(where, 'minProperties of more than 1 is not supported: name what is required');
}

/** Keywords without a type restrict values of one type and let in all others; here they mean that type. */
function setType(schema: Schema): void {
  if (schema.has('type')) return;
  const type = TYPED.find(([, keywords]) => keywords.some((name) => schema.has(name)));
  if (type !== undefined) schema.set('type', type[0]);
}

/** A pattern as the library reads it; a length is one too, as its own way with lengths lets control characters in. */
function setPattern(schema: Schema, where: string): void {
  const pattern = schema.get('pattern');
  const [least, most] = ['minLength', 'maxLength'].map((name) => {
    const length = schema.get(name);
    if (length === undefined) return undefined;
    const isCount = length instanceof JsonNumber && /^\d{1,6}$/.test(length.text);
    return isCount ? length.text : fail(`${where}.${name}`, 'expected a whole number up to 999999');
  });
  if (least !== undefined || most !== undefined) {
    const beside = ['pattern', 'format'].find((name) => schema.has(name));
    if (beside !== undefined) fail(where, `${beside} beside a length is not supported: the answer could break it`);
    for (const name of ['minLength', 'maxLength']) schema.delete(name);
    // Without escapes: the library is many times faster with a plain class, and has an end to what a length costs.
    schema.set('pattern', `[^\\x00-\\x1f\\x22\\x5c]{${least ?? 0},${most ?? ''}}`);
  } else if (typeof pattern === 'string') schema.set('pattern', readRegex(pattern, `${where}.pattern`, 'JSON string'));
  else if (pattern !== undefined) fail(`${where}.pattern`, 'expected text');
}

function spellOut(schema: Schema, where: string): void {
  const isArray = [schema.get('type')].flat().includes('array');
  const isOpen = !schema.has('items') && !schema.has('prefixItems');
  if (isArray && isOpen && OF_ARRAY.some((name) => schema.has(name))) schema.set('items', true);

  const required = schema.get('required') ?? [];
  const properties = schema.get('properties') ?? new Map<string, JsonValue>();
  if (!(properties instanceof Map)) fail(`${where}.properties`, 'expected an object');
  if (!Array.isArray(required)) fail(`${where}.required`, 'expected a list of names');
  // What else is allowed beside described properties is left out: it could repeat their names.
  const others = schema.get('additionalProperties') ?? true;
  if (properties.size > 0) for (const name of ['additionalProperties', 'unevaluatedProperties']) schema.delete(name);
  const names = required.map((name) =>
    typeof name === 'string' ? name : fail(`${where}.required`, 'expected a list of names'),
  );
  for (const name of names) if (!properties.has(name)) properties.set(name, others);
  if (properties.size === 0) return;
  schema.set('properties', new Map([...properties].map(([name, inner]) => [escapedName(name), inner])));
  schema.set('required', [...new Set(names.map(escapedName))]);
}

/** The library's own ranges of numbers let in numbers beyond their ends, and signs without a number. */
function withRange(schema: Schema, where: string, ranges: string[]): Schema {
  const types = [schema.get('type') ?? []].flat();
  const isDecimal = types.includes('number');
  if (!(isDecimal || types.includes('integer')) || !OF_NUMBER.some((name) => schema.has(name))) return schema;
  const { low, high } = boundsOf(schema);
  const range = isDecimal ? numberRange(low, high) : integerRange(low, high);
  if (range === undefined) fail(where, 'no number lies between its bounds, or they have too many digits');
  const number: Schema = new Map([['const', rangeMark(ranges.push(range) - 1)]]);
  const others = types.filter((type) => type !== 'number' && type !== 'integer');
  if (others.length === 0) return number;
  const rest: Schema = new Map([...schema].filter(([name]) => !OF_NUMBER.includes(name)));
  return new Map([['anyOf', [rest.set('type', others), number]]]);
}

/** The library writes names into its grammar as they are: those with quotes and the like must come escaped for both. */
function escapedName(name: string): string {
  return JSON.stringify(name).slice(1, -1).replace(/["\\]/g, '\\$&');
}

function inEach(schema: Schema, name: string, where: string, ranges: string[]): void {
  const inner = schema.get(name);
  if (inner === undefined) return;
  if (!(inner instanceof Map)) fail(`${where}.${name}`, 'expected an object of schemas');
  schema.set(
    name,
    new Map([...inner].map(([key, value]) => [key, readSchema(value, `${where}.${name}.${key.slice(0, 64)}`, ranges)])),
  );
}

function fail(where: string, message: string): never {
  throw new InvalidArgumentError(where, `${where}: ${message}`);
}
