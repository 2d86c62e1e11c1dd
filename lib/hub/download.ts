/** Brings a model into the cache: lists a revision, fetches what is missing, and only then gives the revision its name. */
import { realpath } from 'node:fs/promises';
import { IoError, NotFoundError } from '../errors.js';
import { type Fetching, fetchBlob } from './blob.js';
import { entryOf } from './cache.js';
import type { Source } from './environment.js';
import { Http } from './http.js';
import { HUBS } from './hub.js';
import { chosen, type RemoteFile } from './listing.js';
import { withLock } from './lock.js';
import { PartFile } from './part_file.js';
import { bytesOf, type Progress } from './progress.js';
import type { PullResult } from './pull.js';
import { type Policy, retrying } from './retry.js';
import { Semaphore } from './semaphore.js';
import { anySignal } from './signals.js';
import { freeBytes } from './space.js';
import { Store } from './store.js';

export interface Download {
  id: string;
  revision: string;
  source: Source;
  endpoint: string;
  include: readonly string[];
  exclude: readonly string[];
  maxWorkers: number;
}

interface Surroundings {
  policy: Policy;
  progress: Progress;
  signal: AbortSignal;
  onNote(line: string): void;
}

export async function download(asked: Download, token: string | undefined, around: Surroundings): Promise<PullResult> {
  const { id, source, endpoint } = asked;
  const store = new Store(source, entryOf(source, id));
  await store.prepare();
  const http = await Http.open(endpoint, token === undefined ? {} : HUBS[source].secrets(token));
  try {
    const onWait = () => around.onNote(`another process is downloading ${id}; waiting for it`);
    const body = () => fill(store, asked, { ...around, http, requests: new Semaphore(asked.maxWorkers) });
    return await withLock(await realpath(store.entry), around.signal, onWait, body);
  } finally {
    await http.close();
  }
}

async function fill(store: Store, asked: Download, fetching: Fetching): Promise<PullResult> {
  const { id, revision, source, endpoint } = asked;
  const { http, policy, progress, signal, onNote } = fetching;
  const hub = HUBS[source];
  const listing = await retrying(policy, signal, onNote, () => hub.list(http, endpoint, id, revision, signal));
  const files = chosen(listing.files, asked.include, asked.exclude);
  if (files.length === 0)
    throw new NotFoundError(`${id}@${revision}: include and exclude leave none of ${listing.files.length} files`);
  const missing = await whatIsMissing(files, store);
  await checkSpace(missing, store, id);
  await store.writeTree(listing);
  progress.begin(files, missing);
  const urlOf = ({ path }: RemoteFile) => hub.fileUrl(endpoint, id, revision, listing.commit, path);
  await fetchAll(missing, urlOf, store, asked.maxWorkers, fetching);
  for (const file of files) await store.link(listing.commit, file);
  await store.publish(revision, listing, files);
  return {
    id,
    source,
    revision,
    commit: listing.commit,
    path: store.snapshotOf(listing.commit),
    files: files.length,
    bytes: bytesOf(files),
    downloadedBytes: progress.fetchedBytes,
  };
}

/** The first failure ends all; settles when all have ended, so that nothing is written afterwards. */
async function fetchAll(
  files: readonly RemoteFile[],
  urlOf: (file: RemoteFile) => string,
  store: Store,
  atOnce: number,
  fetching: Fetching,
): Promise<void> {
  const failed = new AbortController();
  const signal = anySignal(fetching.signal, failed.signal);
  const jobs = new Semaphore(atOnce);
  const errors: unknown[] = [];
  const fetchOne = async (file: RemoteFile) => {
    try {
      await jobs.run(signal, () => fetchBlob(file, urlOf(file), store.blobOf(file), { ...fetching, signal }));
      fetching.progress.finish(file);
    } catch (error) {
      errors.push(error);
      failed.abort();
    }
  };
  await Promise.all(files.map(fetchOne));
  if (errors.length > 0) throw errors[0];
}

/** Contents that are not in the cache, each once, small ones first: what a model is can be read before its weights are there. */
async function whatIsMissing(files: readonly RemoteFile[], store: Store): Promise<RemoteFile[]> {
  const missing = new Map<string, RemoteFile>();
  for (const file of files) if (!missing.has(file.hash.hex) && !(await store.has(file))) missing.set(file.hash.hex, file);
  return [...missing.values()].sort((a, b) => a.size - b.size);
}

async function checkSpace(missing: readonly RemoteFile[], store: Store, id: string): Promise<void> {
  let asked = bytesOf(missing);
  for (const file of missing) asked -= await PartFile.bytesThere(store.blobOf(file), file.size);
  const free = await freeBytes(store.entry);
  if (asked <= free) return;
  throw new IoError(
    `${id}: ${asked} bytes are still to be downloaded, where ${free} are free in ${store.entry}`,
    'make room, or set HF_HOME (or MODELSCOPE_CACHE) to a folder on a larger disk',
  );
}
