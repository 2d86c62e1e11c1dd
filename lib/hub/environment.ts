/**
 * Everything the environment says about hubs: where they are, who asks, where their caches lie. Names and defaults are those of
 * the hubs' own Python libraries, so that both read and fill the same caches.
 */
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { InvalidArgumentError } from '../errors.js';

export type Source = 'huggingface' | 'modelscope';

export const SOURCES: readonly Source[] = ['huggingface', 'modelscope'];

const DEFAULT_ENDPOINTS: Record<Source, string> = {
  huggingface: 'https://huggingface.co',
  modelscope: 'https://modelscope.cn',
};

/** Where a hub is, without a slash at the end. */
export function endpointOf(source: Source): string {
  const { HF_ENDPOINT, MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN } = process.env;
  const name = source === 'huggingface' ? 'HF_ENDPOINT' : 'MODELSCOPE_ENDPOINT';
  const given = source === 'huggingface' ? HF_ENDPOINT : MODELSCOPE_ENDPOINT || MODELSCOPE_DOMAIN;
  const text = given?.trim() || DEFAULT_ENDPOINTS[source];
  const address = /^https?:\/\//.test(text) ? text : `https://${text}`;
  if (URL.canParse(address)) {
    const { href, username, password, search, hash } = new URL(address);
    if (username + password + search + hash === '') return href.replace(/\/+$/, '');
  }
  // Not repeated: it may hold a password.
  throw new InvalidArgumentError(name, `${name}: expected an address such as ${DEFAULT_ENDPOINTS[source]}`);
}

/** The token to ask with, if there is one. Never part of a message. */
export function tokenOf(source: Source): string | undefined {
  const { HF_TOKEN, HUGGING_FACE_HUB_TOKEN, HF_TOKEN_PATH, MODELSCOPE_API_TOKEN } = process.env;
  if (source === 'modelscope') return clean(MODELSCOPE_API_TOKEN);
  if (isTrue(process.env.HF_HUB_DISABLE_IMPLICIT_TOKEN)) return undefined;
  return (
    clean(HF_TOKEN) ?? clean(HUGGING_FACE_HUB_TOKEN) ?? clean(readIfThere(HF_TOKEN_PATH || join(huggingFaceHome(), 'token')))
  );
}

/** The folder a hub's models are cached in. */
export function cacheRootOf(source: Source): string {
  const { HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, MODELSCOPE_CACHE } = process.env;
  if (source === 'modelscope') return folder(MODELSCOPE_CACHE || join(homedir(), '.cache', 'modelscope'));
  return folder(HF_HUB_CACHE || HUGGINGFACE_HUB_CACHE || join(huggingFaceHome(), 'hub'));
}

/** The variable that forbids connections, if one does. */
export function offlineBy(): string | undefined {
  return ['HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'].find((name) => isTrue(process.env[name]));
}

/** Whether any variable names a proxy. */
export function hasProxy(): boolean {
  return ['http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY'].some((name) => process.env[name]);
}

/** Seconds without a byte after which a connection counts as lost. */
export function timeoutSeconds(): number {
  const seconds = Number(process.env.HF_HUB_DOWNLOAD_TIMEOUT);
  return seconds > 0 && seconds <= 3600 ? seconds : 30;
}

function huggingFaceHome(): string {
  const { HF_HOME, XDG_CACHE_HOME } = process.env;
  return folder(HF_HOME || join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface'));
}

function folder(path: string): string {
  return resolve(path.replace(/^~(?=\/|$)/, homedir()));
}

function isTrue(value: string | undefined): boolean {
  return value !== undefined && ['1', 'ON', 'YES', 'TRUE'].includes(value.toUpperCase());
}

// A token with anything else in it would be a header of its own making.
function clean(token: string | undefined): string | undefined {
  const text = token?.replace(/[\r\n]/g, '').trim() ?? '';
  return /^[\x21-\x7e]+$/.test(text) ? text : undefined;
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(folder(path), 'utf8');
  } catch {
    return undefined;
  }
}
