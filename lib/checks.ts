/**
 * Checks of single values that a caller passes: unknown names are refused with the nearest valid one, numbers by type and range.
 */
import { InvalidArgumentError } from './errors.js';

export const INT32_MAX = 2 ** 31 - 1;
/** As in csrc/engine/speculation/depth_control.h. */
export const MAX_DRAFT_DEPTH = 15;

/** Refuses what is not an object and fields that are not in `known`. */
export function checkFields(what: string, value: unknown, known: readonly string[]): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new InvalidArgumentError(what, `${what}: expected an object, found ${kindOf(value)}`);
  }
  for (const name of Object.keys(value)) {
    if (known.includes(name)) continue;
    const nearest = nearestName(name, known);
    const hint = nearest === undefined ? `known: ${known.join(', ')}` : `did you mean ${nearest}?`;
    throw new InvalidArgumentError(name, `${what}: unknown option ${JSON.stringify(name)}`, hint);
  }
}

export interface Range {
  min: number;
  max: number;
  integer?: boolean;
  /** The range is open at `min`. */
  above?: boolean;
}

export function checkNumber(name: string, value: unknown, range: Range): number {
  const { min, max, integer = false, above = false } = range;
  const inRange = typeof value === 'number' && (above ? value > min : value >= min) && value <= max;
  if (inRange && (!integer || Number.isInteger(value))) return value;
  const kind = integer ? 'an integer' : 'a number';
  const expected = above ? `${kind} above ${min}, at most ${max}` : `${kind} from ${min} to ${max}`;
  throw new InvalidArgumentError(name, `${name}: expected ${expected}, found ${show(value)}`);
}

export function checkBoolean(name: string, value: unknown): boolean {
  if (typeof value === 'boolean') return value;
  throw new InvalidArgumentError(name, `${name}: expected true or false, found ${show(value)}`);
}

export function checkOneOf<T extends string>(name: string, value: unknown, choices: readonly T[]): T {
  const choice = choices.find((known) => known === value);
  if (choice !== undefined) return choice;
  throw new InvalidArgumentError(name, `${name}: expected one of ${choices.join(', ')}, found ${show(value)}`);
}

export function checkSignal(signal: unknown): AbortSignal | undefined {
  if (signal === undefined || signal instanceof AbortSignal) return signal;
  throw new InvalidArgumentError('signal', `signal: expected an AbortSignal, found ${kindOf(signal)}`);
}

export function checkCallback(name: string, value: unknown): void {
  if (value === undefined || typeof value === 'function') return;
  throw new InvalidArgumentError(name, `${name}: expected a function, found ${kindOf(value)}`);
}

/** Token ids of a prompt, each in the vocabulary of the model. */
export function checkIds(name: string, ids: unknown, vocabSize: number): Int32Array {
  if (!(ids instanceof Int32Array) && !Array.isArray(ids)) {
    throw new InvalidArgumentError(name, `${name}: expected an array of token ids, found ${kindOf(ids)}`);
  }
  for (const [i, id] of (ids as readonly unknown[] | Int32Array).entries()) {
    if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < vocabSize) continue;
    throw new InvalidArgumentError(name, `${name}[${i}]: expected a token id from 0 to ${vocabSize - 1}, found ${show(id)}`);
  }
  return Int32Array.from(ids as readonly number[]);
}

/** A prompt must leave room in the context for at least `reserve` more tokens. */
export function checkPromptLength(name: string, ids: Int32Array, context: number, reserve: number): void {
  if (ids.length === 0) throw new InvalidArgumentError(name, `${name}: expected at least one token, found none`);
  if (ids.length + reserve <= context) return;
  const message = `${name}: ${ids.length} tokens, where the context of ${context} leaves room for ${context - reserve}`;
  throw new InvalidArgumentError(name, message, 'shorten it, or load the model with a larger maxModelLen if its config allows');
}

function nearestName(name: string, known: readonly string[]): string | undefined {
  // max_tokens is maxTokens written otherwise
  const fold = (text: string) => text.replace(/[_-]/g, '').toLowerCase();
  const ranked = known.map((candidate) => ({ candidate, distance: editDistance(fold(name), fold(candidate)) }));
  ranked.sort((a, b) => a.distance - b.distance);
  const best = ranked[0];
  return best !== undefined && best.distance <= Math.max(1, best.candidate.length / 3) ? best.candidate : undefined;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= Math.min(a.length, 64); i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substituted = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, substituted));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

/** How an error names what was found. */
export function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (value === undefined) return 'nothing';
  return Array.isArray(value) ? 'an array' : `a ${typeof value}`;
}

/** The same, with the value of a number and the beginning of a string. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 40));
  return typeof value === 'number' || typeof value === 'bigint' ? String(value) : kindOf(value);
}
