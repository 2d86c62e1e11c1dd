/** From what a caller names, a folder or a model of a hub, to a folder. Connects only when told to. */
import { existsSync } from 'node:fs';
import { InvalidArgumentError, NotFoundError } from '../errors.js';
import { cachedRevisions, findSnapshot, type Snapshot } from './cache.js';
import { cacheRootOf, SOURCES, type Source } from './environment.js';
import { HUBS } from './hub.js';
import { parseModelId, readModelId } from './ids.js';
import type { PullProgress } from './progress.js';
import { checkSource, pull } from './pull.js';

/** How a model that is named by its id, `owner/name` or `owner/name@revision`, becomes a folder. */
export interface ModelSource {
  /** Downloads what the cache lacks. Default false: no connection is ever made. */
  download?: boolean | undefined;
  /** A branch, a tag or a commit. Default: the hub's main branch. */
  revision?: string | undefined;
  /** Where to look and to download from. Default: in both caches, and from Hugging Face. */
  source?: Source | undefined;
}

export interface ResolveOptions extends ModelSource {
  onProgress?: ((progress: PullProgress) => void) | undefined;
  onNote?: ((line: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * The folder of a model: `model` itself when it is one, else the snapshot of that id in the cache.
 *
 *     const folder = await resolveModel('MedAIBase/AntAngelMed-FP8', { download: true });
 */
export async function resolveModel(model: string, options: ResolveOptions = {}): Promise<string> {
  const { download, source, ...rest } = options;
  if (download !== undefined && typeof download !== 'boolean') {
    throw new InvalidArgumentError('download', 'download: expected true or false');
  }
  const asked = source === undefined ? undefined : checkSource(source);
  if (existsSync(model) || parseModelId(model) === undefined) {
    // Whoever reads the folder says what is wrong with it.
    if (options.revision === undefined) return model;
    throw new InvalidArgumentError('revision', `revision: ${model} is a folder, and only models of a hub have revisions`);
  }
  const { id, revision } = readModelId(model, options.revision);
  const places = asked === undefined ? SOURCES : [asked];
  const found = places.flatMap((place) => findSnapshot(place, id, revision) ?? []);
  const whole = found.find(({ missing }) => missing.length === 0);
  if (whole !== undefined) return whole.path;
  if (download) return (await pull(model, { ...rest, source: asked })).path;
  throw notCached(model, id, revision, places, found[0]);
}

function notCached(
  model: string,
  id: string,
  revision: string | undefined,
  places: readonly Source[],
  partial: Snapshot | undefined,
): NotFoundError {
  const command = `sigmoe pull ${model}${revision === undefined || model.includes('@') ? '' : ` --revision ${revision}`}`;
  const hint = `${command} downloads it, as does download: true (--download)`;
  if (partial !== undefined) {
    const { missing, path } = partial;
    const rest = missing.length === 1 ? '' : ` and ${missing.length - 1} more`;
    return new NotFoundError(`${model}: its download is not whole: ${missing[0]}${rest} missing in ${path}`, hint);
  }
  const others = places.flatMap((place) => cachedRevisions(place, id));
  const there = others.length === 0 ? '' : `; of ${id} there is ${[...new Set(others)].slice(0, 5).join(', ')}`;
  const looked = places.map(cacheRootOf).join(' and ');
  const asked = revision ?? places.map((place) => HUBS[place].defaultRevision).join(' or ');
  return new NotFoundError(`${model}: no such folder, and revision ${asked} of it is not in the cache ${looked}${there}`, hint);
}
