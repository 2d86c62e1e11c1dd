/** Reads the small text files of a model folder; what is wrong with one is said with its path. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { CheckpointError, IoError, NotFoundError } from './errors.js';

const MAX_BYTES = 256 * 1024 * 1024;

export type Fields = Record<string, unknown>;

/** The text of a file, or undefined when there is none. */
export async function readTextFile(folder: string, name: string): Promise<string | undefined> {
  const path = join(folder, name);
  try {
    const { size } = await stat(path);
    if (size > MAX_BYTES) throw new CheckpointError(`${path}: ${size} bytes, where at most ${MAX_BYTES} are read`);
    return await readFile(path, 'utf8');
  } catch (cause) {
    if (cause instanceof CheckpointError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw new IoError(`${path}: cannot be read: ${message}`, '', { cause });
  }
}

/** A JSON object; `{}` when the file is absent. */
export async function readOptionalJson(folder: string, name: string): Promise<Fields> {
  const text = await readTextFile(folder, name);
  return text === undefined ? {} : parseObject(join(folder, name), text);
}

export async function readJson(folder: string, name: string, hint: string): Promise<Fields> {
  const path = join(folder, name);
  const text = await readTextFile(folder, name);
  if (text === undefined) throw new NotFoundError(`${path}: no such file`, hint);
  return parseObject(path, text);
}

export function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function parseObject(path: string, text: string): Fields {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(`${path}: not JSON: ${(cause as Error).message}`, '', { cause });
  }
  if (isFields(value)) return value;
  throw new CheckpointError(`${path}: expected a JSON object, found ${Array.isArray(value) ? 'an array' : String(value)}`);
}
