/**
 * API keys. Only their hashes are kept, and a presented key is compared with every one of them in constant time, so that
 * the time of a refusal tells nothing.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { OpenAIError } from '../openai/index.js';

/** What one key may use at a time and per minute. */
export interface KeyLimits {
  maxConcurrency?: number | undefined;
  tokensPerMinute?: number | undefined;
}

export interface ApiKey extends KeyLimits {
  /** Names the key in logs and metrics; callers of one id share a prefix cache. */
  id: string;
  key: string;
}

/** Who asks: a key by its id, or anybody where there are no keys. */
export interface Caller {
  id: string | undefined;
  limits: KeyLimits;
}

export class KeyRing {
  private readonly hashes: { hash: Buffer; caller: Caller }[];
  private readonly anybody: Caller;

  constructor(keys: readonly ApiKey[], limits: KeyLimits) {
    this.anybody = { id: undefined, limits };
    this.hashes = keys.map(({ id, key, ...own }) => ({ hash: sha256(key), caller: { id, limits: { ...limits, ...own } } }));
  }

  get isOpen(): boolean {
    return this.hashes.length === 0;
  }

  /** `basicAllowed`: where a browser may present a key as the password of its own dialog. */
  check(authorization: string | undefined, basicAllowed: boolean): Caller {
    if (this.isOpen) return this.anybody;
    const presented = keyOf(authorization, basicAllowed);
    if (presented === undefined) throw refusal('no API key was sent: send it as "Authorization: Bearer <key>"', null);
    const hash = sha256(presented);
    let found: Caller | undefined;
    for (const known of this.hashes) if (timingSafeEqual(known.hash, hash)) found = known.caller;
    if (found === undefined) throw refusal('the API key is not one of this server', 'invalid_api_key');
    return found;
  }
}

function refusal(message: string, code: string | null): OpenAIError {
  return new OpenAIError(401, { message, code });
}

function keyOf(authorization: string | undefined, basicAllowed: boolean): string | undefined {
  const [, scheme = '', value = ''] = /^(\S+)\s+(\S.*)$/.exec(authorization ?? '') ?? [];
  if (scheme.toLowerCase() === 'bearer') return value;
  if (scheme.toLowerCase() !== 'basic' || !basicAllowed) return undefined;
  const pair = Buffer.from(value, 'base64').toString('utf8');
  return pair.slice(pair.indexOf(':') + 1);
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

/**
 * Keys from a file: one a line, as `key`, or `id key` with limits behind it: `ward-3 sk-... max-concurrency=4
 * tokens-per-minute=60000`. `#` begins a comment.
 */
export function parseKeyFile(text: string): ApiKey[] {
  const keys: ApiKey[] = [];
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    const words = line
      .replace(/(^|\s)#.*$/, '')
      .split(/\s+/)
      .filter(Boolean);
    const limits = words.filter((word) => /^[a-z-]+=/.test(word));
    const [first, second, ...rest] = words.filter((word) => !limits.includes(word));
    if (first === undefined) continue;
    const at = `line ${index + 1}`;
    if (rest.length > 0) throw new Error(`${at}: expected "key" or "id key", then limits`);
    keys.push({
      ...(second === undefined ? unnamedKey(first, keys.length) : { id: first, key: second }),
      ...limitsOf(limits, at),
    });
  }
  return keys;
}

export function unnamedKey(key: string, index: number): ApiKey {
  return { id: `key-${index + 1}`, key };
}

function limitsOf(words: readonly string[], at: string): KeyLimits {
  const limits: KeyLimits = {};
  for (const word of words) {
    const [name, text = ''] = word.split('=', 2);
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < 1) throw new Error(`${at}: ${name}: expected an integer of at least 1`);
    if (name === 'max-concurrency') limits.maxConcurrency = value;
    else if (name === 'tokens-per-minute') limits.tokensPerMinute = value;
    else throw new Error(`${at}: unknown limit ${name}; there are max-concurrency and tokens-per-minute`);
  }
  return limits;
}
