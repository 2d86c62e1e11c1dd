/**
 * Names of models on a hub, `owner/name` or `owner/name@revision`, and the names of files that a server sends: what of either may
 * become part of a path or of an address.
 */
import { CheckpointError, InvalidArgumentError } from '../errors.js';

export interface ModelId {
  /** owner/name */
  id: string;
  revision: string | undefined;
}

const PART = /^[A-Za-z0-9_][\w.-]{0,95}$/;
const MAX_REVISION = 200;
const MAX_PATH_BYTES = 1024;
const MAX_NAME_BYTES = 255;

/** What `text` names, or undefined when it is no id of a model. */
export function parseModelId(text: string): ModelId | undefined {
  const at = text.indexOf('@');
  const id = at < 0 ? text : text.slice(0, at);
  const parts = id.split('/');
  if (parts.length !== 2 || !parts.every((part) => PART.test(part))) return undefined;
  // Caches write owner--name, and no name may climb.
  if (id.includes('--') || id.includes('..')) return undefined;
  return { id, revision: at < 0 ? undefined : checkRevision(text.slice(at + 1)) };
}

/** An id, with a revision of its own or the one given beside it. */
export function readModelId(text: unknown, revision: string | undefined): ModelId {
  const parsed = typeof text === 'string' ? parseModelId(text) : undefined;
  if (parsed === undefined) {
    const found = typeof text === 'string' ? JSON.stringify(text.slice(0, 200)) : typeof text;
    throw new InvalidArgumentError('id', `id: expected owner/name or owner/name@revision, found ${found}`);
  }
  if (revision === undefined) return parsed;
  const given = checkRevision(revision);
  if (parsed.revision === undefined || parsed.revision === given) return { ...parsed, revision: given };
  throw new InvalidArgumentError('revision', `revision: ${given}, where the id asks for ${parsed.revision}`, 'name it once');
}

/** A branch, a tag or a commit; as safe in a path as the name of a file. */
function checkRevision(text: unknown): string {
  if (typeof text === 'string' && text.length <= MAX_REVISION && pathProblem(text) === undefined && !/[\s@]/.test(text))
    return text;
  const found = typeof text === 'string' ? JSON.stringify(text.slice(0, 80)) : typeof text;
  throw new InvalidArgumentError('revision', `revision: expected a branch, a tag or a commit, found ${found}`);
}

/** Refuses names that could lead out of the folder they are meant for. `from` says who sent them. */
export function checkRelativePath(path: unknown, from: string): string {
  const problem = typeof path === 'string' ? pathProblem(path) : 'is no text';
  if (typeof path === 'string' && problem === undefined) return path;
  const shown = typeof path === 'string' ? `${JSON.stringify(path.slice(0, 120))} ` : '';
  throw new CheckpointError(`${from}: a file name ${shown}${problem}`, 'nothing was written; do not trust this source');
}

/** Refuses lists in which one file would be the folder of another, or two would be the same. */
export function checkDistinct(paths: readonly string[], from: string): void {
  const files = new Set<string>();
  for (const path of paths) {
    if (files.has(path)) throw new CheckpointError(`${from}: the file ${JSON.stringify(path)} is there twice`);
    files.add(path);
  }
  for (const path of paths) {
    for (let at = path.indexOf('/'); at >= 0; at = path.indexOf('/', at + 1)) {
      if (!files.has(path.slice(0, at))) continue;
      throw new CheckpointError(`${from}: ${JSON.stringify(path.slice(0, at))} is both a file and a folder`);
    }
  }
}

function pathProblem(path: string): string | undefined {
  if (path === '') return 'is empty';
  if (path.startsWith('/')) return 'is absolute';
  if (/[\p{Cc}\\]/u.test(path)) return 'holds a character that names do not have';
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) return `is longer than ${MAX_PATH_BYTES} bytes`;
  for (const name of path.split('/')) {
    if (name === '' || name === '.' || name === '..') return 'leads out of its folder';
    if (Buffer.byteLength(name) > MAX_NAME_BYTES) return `has a part longer than ${MAX_NAME_BYTES} bytes`;
  }
  return undefined;
}
