/** From the form a caller asks for to the program a grammar thread compiles: checked, within limits, in one line of errors. */
import { InvalidArgumentError } from '../errors.js';
import { JsonNumber, type JsonValue, parseJson } from '../json.js';
import type { StructuredOutput } from '../types.js';
import { readGrammar } from './ebnf.js';
import { readRegex } from './regex.js';
import { readSchema } from './schema.js';
import type { Program, SchemaText } from './worker.js';

const MAX_TEXT = 131_072;
const MAX_REGEX = 8_192;
const MAX_CHOICES = 4_096;
const MAX_TOOLS = 256;
const MAX_DEPTH = 128;

const KINDS = ['json', 'jsonObject', 'regex', 'choice', 'grammar', 'toolCalls'] as const;

/** Throws an InvalidArgumentError whose argument is a path such as `structured.json`. */
export function readForm(form: StructuredOutput): Program {
  const expected = `structured: expected an object with one of ${KINDS.join(', ')}`;
  if (typeof form !== 'object' || form === null) throw new InvalidArgumentError('structured', expected);
  const fields = form as { [key: string]: unknown };
  const given = Object.keys(fields).filter((key) => fields[key] !== undefined && key !== 'parallel');
  const [kind] = given;
  if (kind === undefined || given.length > 1 || !(KINDS as readonly string[]).includes(kind)) {
    throw new InvalidArgumentError('structured', `${expected}, found ${given.length === 0 ? 'none' : given.join(' and ')}`);
  }
  const where = `structured.${kind}`;
  const value = fields[kind];
  if (fields.parallel !== undefined && kind !== 'toolCalls') fail('structured.parallel', 'goes with toolCalls alone');
  switch (kind as (typeof KINDS)[number]) {
    case 'json':
      return { kind: 'json', schema: schemaOf(value, where) };
    case 'jsonObject':
      if (value !== true) fail(where, 'expected true');
      return { kind: 'json', schema: { text: '{"type":"object"}', ranges: [] } };
    case 'regex':
      return { kind: 'regex', pattern: readRegex(text(value, where, MAX_REGEX), where) };
    case 'grammar':
      return { kind: 'grammar', text: readGrammar(text(value, where, MAX_TEXT)) };
    case 'choice':
      return { kind: 'grammar', text: choiceGrammar(value, where) };
    case 'toolCalls':
      return { kind: 'calls', tools: toolSchemas(value, where), parallel: readParallel(fields.parallel) };
  }
}

function schemaOf(value: unknown, where: string): SchemaText {
  const given = typeof value === 'string' ? value : writeJson(value, where);
  let schema: JsonValue;
  try {
    schema = parseJson(text(given, where, MAX_TEXT));
  } catch (error) {
    if (error instanceof InvalidArgumentError && error.argument === 'json') fail(where, error.message);
    throw error;
  }
  const ranges: string[] = [];
  return { text: writeJson(readSchema(schema, where, ranges), where), ranges };
}

/** The texts as literals, every character that could mean something to the notation as its code point. */
function choiceGrammar(value: unknown, where: string): string {
  if (!Array.isArray(value) || value.length === 0) fail(where, 'expected a list of texts');
  if (value.length > MAX_CHOICES) fail(where, `expected at most ${MAX_CHOICES} texts, found ${value.length}`);
  const choices = [...new Set(value.map((choice, i) => text(choice, `${where}[${i}]`, MAX_TEXT)))];
  if (choices.reduce((sum, { length }) => sum + length, 0) > MAX_TEXT) fail(where, `expected at most ${MAX_TEXT} characters`);
  const literals = choices.map((choice) => {
    const escaped = choice.replace(/[^A-Za-z0-9 ]/gu, (character) => {
      return `\\U${(character.codePointAt(0) ?? 0).toString(16).padStart(8, '0')}`;
    });
    return `"${escaped}"`;
  });
  return `root ::= ${literals.join(' | ')}`;
}

function toolSchemas(value: unknown, where: string): { name: string; schema: SchemaText }[] {
  if (!Array.isArray(value) || value.length === 0) fail(where, 'expected a list of tools');
  if (value.length > MAX_TOOLS) fail(where, `expected at most ${MAX_TOOLS} tools, found ${value.length}`);
  return value.map((tool: unknown, i) => {
    const path = `${where}[${i}]`;
    if (typeof tool !== 'object' || tool === null) fail(path, 'expected a name and parameters');
    const { name, parameters } = tool as { name?: unknown; parameters?: unknown };
    const schema = parameters === undefined || parameters === null ? '{"type":"object"}' : parameters;
    return { name: text(name, `${path}.name`, 256), schema: schemaOf(schema, `${path}.parameters`) };
  });
}

function readParallel(value: unknown): boolean {
  if (value !== undefined && typeof value !== 'boolean') fail('structured.parallel', 'expected true or false');
  return value !== false;
}

function text(value: unknown, where: string, limit: number): string {
  if (typeof value !== 'string') fail(where, `expected text, found ${value === null ? 'null' : typeof value}`);
  if (value.length > limit) fail(where, `expected at most ${limit} characters, found ${value.length}`);
  if (/\p{Surrogate}/u.test(value)) fail(where, 'holds half a character (a lone surrogate)');
  return value;
}

/** JSON text of a plain value or of one from `parseJson`, whose numbers keep their text and whose objects are Maps. */
function writeJson(value: unknown, where: string, depth = 0): string {
  if (depth > MAX_DEPTH) fail(where, `nested more than ${MAX_DEPTH} levels deep`);
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return JSON.stringify(value);
  if (value instanceof JsonNumber) return value.text;
  if (typeof value === 'number' && Number.isFinite(value)) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((item) => writeJson(item, where, depth + 1)).join(',')}]`;
  if (typeof value !== 'object') fail(where, `expected a JSON value, found ${typeof value}`);
  const entries: [unknown, unknown][] = value instanceof Map ? [...value] : Object.entries(value);
  const fields = entries.filter(([, item]) => item !== undefined);
  return `{${fields.map(([key, item]) => `${JSON.stringify(key)}:${writeJson(item, where, depth + 1)}`).join(',')}}`;
}

function fail(where: string, message: string): never {
  throw new InvalidArgumentError(where, `${where}: ${message}`);
}
