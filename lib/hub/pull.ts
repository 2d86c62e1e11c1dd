/** `pull`: what a caller may ask, checked, and whether a connection may be made for it. */

import { checkCallback, checkFields, checkNumber, checkSignal } from '../checks.js';
import { AbortError, InvalidArgumentError, NotFoundError } from '../errors.js';
import { contentOf, findSnapshot } from './cache.js';
import { download } from './download.js';
import { cacheRootOf, endpointOf, offlineBy, SOURCES, type Source, tokenOf } from './environment.js';
import { explain } from './failures.js';
import { HUBS } from './hub.js';
import { readModelId } from './ids.js';
import { Progress, type PullProgress } from './progress.js';
import { DEFAULT_POLICY, type Policy } from './retry.js';
import { anySignal } from './signals.js';

export interface PullOptions {
  /** Default `huggingface`. */
  source?: Source | undefined;
  /** A branch, a tag or a commit. Default: `main` of Hugging Face, `master` of ModelScope. */
  revision?: string | undefined;
  /** Only files that one of these patterns matches: `*` any characters, `?` one. Default: all. */
  include?: readonly string[] | undefined;
  exclude?: readonly string[] | undefined;
  /** Makes no connection: the model is found in the cache or not at all. Also by HF_HUB_OFFLINE=1. */
  offline?: boolean | undefined;
  /** Requests at once, 1 to 64. Default 8. */
  maxWorkers?: number | undefined;
  /** Called at most about 20 times a second and once at the end. */
  onProgress?: ((progress: PullProgress) => void) | undefined;
  /** Called with what a person may want to know: that another process is waited for, that the server asks to wait. */
  onNote?: ((line: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface PullResult {
  id: string;
  source: Source;
  revision: string;
  /** Pass it as the revision to get the same files again. ModelScope tells none: a hash of its list stands for it. */
  commit: string;
  /** The folder to load. */
  path: string;
  files: number;
  bytes: number;
  /** Of these, how many were not in the cache before. */
  downloadedBytes: number;
}

const PULL_FIELDS = [
  'source',
  'revision',
  'include',
  'exclude',
  'offline',
  'maxWorkers',
  'onProgress',
  'onNote',
  'signal',
] as const satisfies readonly (keyof PullOptions)[];

/**
 * Downloads a model, or what is missing of it, and verifies every file. Ended early, by a signal, an error or the end of the
 * process, it goes on from there the next time.
 *
 *     const { path, commit } = await pull('MedAIBase/AntAngelMed-FP8');
 */
export function pull(id: string, options: PullOptions = {}): Promise<PullResult> {
  return pullWith(id, options, DEFAULT_POLICY);
}

/** As `pull`, with a pace of its own. */
export async function pullWith(text: string, options: PullOptions, policy: Policy): Promise<PullResult> {
  checkFields('pull', options, PULL_FIELDS);
  const { onProgress, onNote = () => {} } = options;
  checkCallback('onProgress', onProgress);
  checkCallback('onNote', options.onNote);
  const source = checkSource(options.source);
  const outer = checkSignal(options.signal);
  const { id, revision = HUBS[source].defaultRevision } = readModelId(text, options.revision);
  const include = checkPatterns('include', options.include);
  const exclude = checkPatterns('exclude', options.exclude);
  const maxWorkers = checkNumber('maxWorkers', options.maxWorkers ?? 8, { min: 1, max: 64, integer: true });
  if (outer?.aborted) throw new AbortError(`the download of ${id} was aborted`, undefined, { cause: outer.reason });
  if (options.offline) return cached(source, id, revision, 'offline was asked');
  const offline = offlineBy();
  if (offline !== undefined) return cached(source, id, revision, `${offline} is set`);

  const asked = { id, revision, source, endpoint: endpointOf(source), include, exclude, maxWorkers };
  const token = tokenOf(source);
  // What a callback throws ends the download, and is what the caller gets.
  const failed = new AbortController();
  const guarded = (progress: PullProgress) => {
    try {
      onProgress?.(progress);
    } catch (error) {
      failed.abort({ error });
    }
  };
  const signal = anySignal(failed.signal, ...(outer === undefined ? [] : [outer]));
  try {
    return await download(asked, token, { policy, progress: new Progress(guarded), onNote, signal });
  } catch (error) {
    if (failed.signal.aborted) throw failed.signal.reason.error;
    throw explain(error, { ...asked, hasToken: token !== undefined }, outer);
  }
}

function cached(source: Source, id: string, revision: string, why: string): PullResult {
  const found = findSnapshot(source, id, revision);
  if (found?.missing.length === 0) {
    return { id, source, revision, commit: found.commit ?? '', path: found.path, ...contentOf(found.path), downloadedBytes: 0 };
  }
  const state = found === undefined ? 'is not in' : `lacks ${found.missing[0]} and ${found.missing.length - 1} more in`;
  const message = `${id}@${revision} ${state} the cache ${cacheRootOf(source)}, and no connection is made: ${why}`;
  throw new NotFoundError(message, 'pull it where there is a network, or bring it with sigmoe bundle');
}

export function checkSource(source: unknown): Source {
  const known = SOURCES.find((name) => name === (source ?? 'huggingface'));
  if (known !== undefined) return known;
  throw new InvalidArgumentError('source', `source: expected one of ${SOURCES.join(', ')}, found ${JSON.stringify(source)}`);
}

function checkPatterns(name: 'include' | 'exclude', value: readonly string[] | undefined): readonly string[] {
  if (value === undefined) return [];
  if (Array.isArray(value) && value.every((pattern) => typeof pattern === 'string' && pattern !== '')) return value;
  throw new InvalidArgumentError(name, `${name}: expected an array of patterns such as *.safetensors`);
}
