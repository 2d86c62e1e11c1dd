/**
 * The caches on this machine, as the hubs' Python libraries lay them out. Hugging Face, and ModelScope by its present library:
 *
 *     models--owner--name | models/owner--name
 *       blobs/<hash>              contents
 *       snapshots/<commit>/...    links to blobs, by the names of the files
 *       refs/<revision>           the commit (ModelScope: snapshots/<revision> is a link to it)
 *       trees/<commit>.json       what the commit holds, so that a snapshot can be seen to be whole
 *
 * ModelScope's older library kept one state of a model as plain files, dots in names written `___`; that is read, not written.
 */
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { isFields } from '../folder.js';
import { cacheRootOf, type Source } from './environment.js';
import { HUBS } from './hub.js';

export interface Snapshot {
  source: Source;
  path: string;
  /** Undefined of ModelScope's older layout. */
  commit: string | undefined;
  /** Files that loading the model needs and that are not there. */
  missing: string[];
}

export function entryOf(source: Source, id: string): string {
  const root = cacheRootOf(source);
  const folder = id.replace('/', '--');
  return source === 'huggingface' ? join(root, `models--${folder}`) : join(root, 'models', folder);
}

/** The snapshot of a model in a cache, whole or not. */
export function findSnapshot(source: Source, id: string, asked: string | undefined): Snapshot | undefined {
  const entry = entryOf(source, id);
  const revision = asked ?? HUBS[source].defaultRevision;
  const commit = commitOf(source, entry, revision);
  if (commit !== undefined) {
    const path = join(entry, 'snapshots', commit);
    if (isFolder(path)) return { source, path, commit, missing: missingFrom(path, readTree(entry, commit)) };
  }
  if (source === 'modelscope') return findPlainFolder(entry, id, revision, asked === undefined);
  return undefined;
}

/** Files of a snapshot and their bytes. */
export function contentOf(path: string): { files: number; bytes: number } {
  const names = readdirSync(path, { recursive: true, encoding: 'utf8' });
  const files = names.map((name) => join(path, name)).filter(isFile);
  return { files: files.length, bytes: files.reduce((sum, file) => sum + statSync(file).size, 0) };
}

/** Revisions of which something is in a cache. */
export function cachedRevisions(source: Source, id: string): string[] {
  const entry = entryOf(source, id);
  return [...namesIn(join(entry, 'refs')), ...namesIn(join(entry, 'snapshots'))];
}

/** What a revision stands for, as far as the cache knows. */
function commitOf(source: Source, entry: string, revision: string): string | undefined {
  if (/^[0-9a-f]{40}$/.test(revision)) return revision;
  try {
    if (source === 'huggingface') return checkCommit(readFileSync(join(entry, 'refs', revision), 'utf8').trim());
    return checkCommit(basename(readlinkSync(join(entry, 'snapshots', revision))));
  } catch {
    return undefined;
  }
}

function findPlainFolder(entry: string, id: string, revision: string, anyRevision: boolean): Snapshot | undefined {
  const [owner = '', name = ''] = id.split('/');
  const root = cacheRootOf('modelscope');
  const plain = name.replaceAll('.', '___');
  const old = [join(root, 'models', owner, plain), join(root, 'hub', 'models', owner, plain)];
  const older = [join(root, owner, plain), join(root, 'hub', owner, plain)];
  // Those do not tell their revision.
  const candidates = [join(entry, 'snapshots', revision), ...(anyRevision ? [...old, ...older] : [])];
  const path = candidates.find(isFolder);
  return path === undefined
    ? undefined
    : { source: 'modelscope', path, commit: undefined, missing: missingFrom(path, undefined) };
}

const READ_AT_LOAD =
  /^(config|generation_config|tokenizer|tokenizer_config)\.json$|^chat_template\.jinja$|^[^/]+\.safetensors(\.index\.json)?$/;

/** What loading needs: by the list of the commit, or by what config and index of the model name. */
function missingFrom(folder: string, tree: readonly string[] | undefined): string[] {
  const needed = new Set(['config.json']);
  for (const path of tree ?? []) if (READ_AT_LOAD.test(path)) needed.add(path);
  try {
    const index: unknown = JSON.parse(readFileSync(join(folder, 'model.safetensors.index.json'), 'utf8'));
    const shards = isFields(index) && isFields(index.weight_map) ? Object.values(index.weight_map) : [];
    for (const shard of shards) if (typeof shard === 'string') needed.add(shard);
  } catch {
    // None, or not JSON: the loader says so.
  }
  return [...needed].filter((path) => !isFile(join(folder, path)));
}

export interface Tree {
  format_version: 1;
  files: Record<string, { size: number; blob_id: string; lfs_sha256?: string; lfs_size?: number }>;
}

function readTree(entry: string, commit: string): string[] | undefined {
  try {
    const tree: unknown = JSON.parse(readFileSync(join(entry, 'trees', `${commit}.json`), 'utf8'));
    return isFields(tree) && tree.format_version === 1 && isFields(tree.files) ? Object.keys(tree.files) : undefined;
  } catch {
    return undefined;
  }
}

function checkCommit(text: string): string | undefined {
  return /^[0-9a-f]{40}$/.test(text) ? text : undefined;
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).filter((name) => !name.startsWith('.'));
  } catch {
    return [];
  }
}

export function isFolder(path: string): boolean {
  return kindOf(path) === 'folder';
}

export function isFile(path: string): boolean {
  return kindOf(path) === 'file';
}

function kindOf(path: string): 'folder' | 'file' | undefined {
  try {
    const stats = statSync(path);
    return stats.isDirectory() ? 'folder' : stats.isFile() ? 'file' : undefined;
  } catch {
    return undefined;
  }
}
