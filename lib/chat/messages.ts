/**
 * From what a caller passes as a conversation to the values a template reads. Every string of it is guarded (markers.ts)
 * except roles, which come from a closed set. Fields beyond those named in types.ts reach the template as they are.
 */
import { InvalidArgumentError } from '../errors.js';
import { JsonNumber, parseJson } from '../json.js';
import type { ChatOptions, Message } from '../types.js';
import { array, boolean, nothing, number, object, string } from './interpreter.js';
import type { Value } from './jinja.js';
import type { Markers } from './markers.js';

const ROLES = ['system', 'user', 'assistant', 'tool'];
const MAX_DEPTH = 256;

/** A conversation that has passed the checks: each message a map in the caller's order, content joined to one string. */
export interface Conversation {
  messages: Map<string, unknown>[];
  tools: unknown[] | undefined;
  variables: Map<string, unknown>;
}

export function readConversation(messages: readonly Message[] | string, options: ChatOptions): Conversation {
  const list = typeof messages === 'string' ? parseAs('messages', messages) : messages;
  if (!Array.isArray(list)) {
    throw new InvalidArgumentError('messages', `messages: expected an array or its JSON text, found ${kindOf(list)}`);
  }
  if (list.length === 0) throw new InvalidArgumentError('messages', 'messages: expected at least one message, found none');
  return {
    messages: list.map((message, i) => readMessage(message, `messages[${i}]`)),
    tools: readTools(options.tools),
    variables: readVariables(options.chatTemplateKwargs),
  };
}

function readMessage(message: unknown, path: string): Map<string, unknown> {
  const fields = fieldsOf(message, path);
  const role = fields.get('role');
  if (typeof role !== 'string' || !ROLES.includes(role)) {
    throw new InvalidArgumentError(`${path}.role`, `${path}.role: expected one of ${ROLES.join(', ')}, found ${show(role)}`);
  }
  const content = readContent(fields.get('content'), `${path}.content`);
  if (content === null && (role === 'user' || role === 'system')) {
    throw new InvalidArgumentError(`${path}.content`, `${path}.content: a ${role} message needs text, found none`);
  }
  fields.set('content', content);
  for (const name of ['reasoning_content', 'reasoning', 'name', 'tool_call_id']) {
    const value = fields.get(name);
    if (value !== undefined && value !== null && typeof value !== 'string') {
      throw new InvalidArgumentError(`${path}.${name}`, `${path}.${name}: expected a string, found ${kindOf(value)}`);
    }
  }
  if (fields.get('reasoning_content') === undefined && typeof fields.get('reasoning') === 'string') {
    fields.set('reasoning_content', fields.get('reasoning'));
  }
  const calls = fields.get('tool_calls');
  if (calls !== undefined && calls !== null) fields.set('tool_calls', readToolCalls(calls, `${path}.tool_calls`));
  return fields;
}

/** Text parts are joined without anything between them. */
function readContent(content: unknown, path: string): string | null {
  if (content === undefined || content === null) return null;
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) {
    throw new InvalidArgumentError(path, `${path}: expected a string or text parts, found ${kindOf(content)}`);
  }
  return content
    .map((part, i) => {
      const fields = fieldsOf(part, `${path}[${i}]`);
      const type = fields.get('type');
      if (type !== 'text') {
        const hint = 'this model reads text only: pass parts of type text';
        throw new InvalidArgumentError(`${path}[${i}].type`, `${path}[${i}].type: expected "text", found ${show(type)}`, hint);
      }
      const text = fields.get('text');
      if (typeof text === 'string') return text;
      throw new InvalidArgumentError(`${path}[${i}].text`, `${path}[${i}].text: expected a string, found ${kindOf(text)}`);
    })
    .join('');
}

function readToolCalls(calls: unknown, path: string): Map<string, unknown>[] {
  if (!Array.isArray(calls)) throw new InvalidArgumentError(path, `${path}: expected an array, found ${kindOf(calls)}`);
  return calls.map((call, i) => {
    const fields = fieldsOf(call, `${path}[${i}]`);
    const nested = fields.get('function');
    const where = nested === undefined ? `${path}[${i}]` : `${path}[${i}].function`;
    const callee = nested === undefined ? fields : fieldsOf(nested, where);
    if (typeof callee.get('name') !== 'string') {
      throw new InvalidArgumentError(`${where}.name`, `${where}.name: expected a string, found ${kindOf(callee.get('name'))}`);
    }
    const given = callee.get('arguments');
    if (typeof given !== 'string' && (typeof given !== 'object' || given === null || Array.isArray(given))) {
      const message = `${where}.arguments: expected an object or JSON text, found ${kindOf(given)}`;
      throw new InvalidArgumentError(`${where}.arguments`, message);
    }
    if (nested !== undefined) fields.set('function', callee);
    return fields;
  });
}

function readTools(tools: ChatOptions['tools']): unknown[] | undefined {
  if (tools === undefined || tools === null) return undefined;
  const list = typeof tools === 'string' ? parseAs('tools', tools) : tools;
  if (!Array.isArray(list)) {
    throw new InvalidArgumentError('tools', `tools: expected an array or its JSON text, found ${kindOf(list)}`);
  }
  return list.length === 0 ? undefined : list.map((tool, i) => fieldsOf(tool, `tools[${i}]`));
}

function readVariables(variables: ChatOptions['chatTemplateKwargs']): Map<string, unknown> {
  if (variables === undefined) return new Map();
  const result = fieldsOf(variables, 'chatTemplateKwargs');
  for (const name of ['messages', 'tools', 'add_generation_prompt']) {
    if (!result.has(name)) continue;
    const message = `chatTemplateKwargs.${name}: this variable has an option of its own`;
    throw new InvalidArgumentError(`chatTemplateKwargs.${name}`, message);
  }
  return result;
}

/** Every string in a value and every key, for the choice of a marker. */
export function* stringsOf(value: unknown, path: string, depth = 0): Generator<string> {
  if (typeof value === 'string') yield value;
  else if (Array.isArray(value))
    for (const [i, item] of value.entries()) yield* stringsOf(item, `${path}[${i}]`, within(depth, path));
  else if (isObject(value)) {
    for (const [key, item] of fieldsOf(value, path)) {
      yield key;
      yield* stringsOf(item, `${path}.${key}`, within(depth, path));
    }
  }
}

/** A template value of the same content, its strings guarded. */
export function guardedValue(value: unknown, markers: Markers, path: string, depth = 0): Value {
  switch (typeof value) {
    case 'string':
      return string(markers.guard(value));
    case 'boolean':
      return boolean(value);
    case 'bigint':
      return number(value);
    case 'number':
      if (Number.isFinite(value)) return number(value);
      throw new InvalidArgumentError(path, `${path}: ${value} has no JSON form`);
    case 'object':
      if (value === null) return nothing();
      if (value instanceof JsonNumber) return number(value);
      if (Array.isArray(value)) {
        return array(value.map((item, i) => guardedValue(item, markers, `${path}[${i}]`, within(depth, path))));
      }
      return object(guardedFields(fieldsOf(value, path), markers, path, within(depth, path)));
    default:
      throw new InvalidArgumentError(path, `${path}: expected a JSON value, found ${kindOf(value)}`);
  }
}

export function guardedMessage(message: Map<string, unknown>, markers: Markers, path: string): Value {
  const fields = guardedFields(message, markers, path, 0);
  return object(fields.set('role', string(message.get('role') as string)));
}

function guardedFields(fields: Map<string, unknown>, markers: Markers, path: string, depth: number): Map<string, Value> {
  const result = new Map<string, Value>();
  for (const [key, item] of fields) {
    if (item !== undefined) result.set(markers.guard(key), guardedValue(item, markers, `${path}.${key}`, depth));
  }
  return result;
}

function within(depth: number, path: string): number {
  if (depth < MAX_DEPTH) return depth + 1;
  const top = path.slice(0, path.search(/[.[]|$/));
  throw new InvalidArgumentError(top, `${top}: nested more than ${MAX_DEPTH} levels deep`);
}

function fieldsOf(value: unknown, path: string): Map<string, unknown> {
  if (value instanceof Map) return new Map(value as Map<string, unknown>);
  if (isObject(value)) return new Map(Object.entries(value));
  throw new InvalidArgumentError(path, `${path}: expected an object, found ${kindOf(value)}`);
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof JsonNumber);
}

function parseAs(argument: string, text: string): unknown {
  try {
    return parseJson(text);
  } catch (cause) {
    throw new InvalidArgumentError(argument, `${argument}: ${(cause as Error).message}`, '', { cause });
  }
}

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'an array';
  return value === undefined ? 'nothing' : typeof value;
}

function show(value: unknown): string {
  return typeof value === 'string' ? JSON.stringify(value.slice(0, 40)) : kindOf(value);
}
