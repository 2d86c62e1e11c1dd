/**
 * The state of a quantisation in its working folder: which shards are whole, with their checksums and errors. A run that was
 * ended at any moment goes on from here. One process at a time works in the folder.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, readFile, realpath, rename, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { BusyError, InvalidArgumentError } from '../errors.js';
import type { QuantizeFormat } from './types.js';

export interface TensorError {
  name: string;
  kind: string;
  relativeError: number;
}

export interface FinishedShard {
  file: string;
  bytes: number;
  sha256: string;
  tensors: TensorError[];
}

/** What a run is about: a working folder of other files or another format is not gone on with. */
export interface Job {
  format: QuantizeFormat;
  source: { file: string; bytes: number; modified: number }[];
}

/** Not part of the result. */
export const STATE = 'sigmoe-quantize.json';

export async function describeJob(folder: string, format: QuantizeFormat, files: readonly string[]): Promise<Job> {
  const source = [];
  for (const file of files) {
    const { size, mtimeMs } = await stat(join(folder, file));
    source.push({ file, bytes: size, modified: mtimeMs });
  }
  return { format, source };
}

/** The shards that an earlier run of the same job finished and that still have their checksum. */
export async function finishedShards(working: string, job: Job, signal?: AbortSignal): Promise<Map<string, FinishedShard>> {
  const kept = new Map<string, FinishedShard>();
  let state: { job: Job; shards: FinishedShard[] };
  try {
    state = JSON.parse(await readFile(join(working, STATE), 'utf8')) as typeof state;
  } catch {
    return kept; // ended before its first shard
  }
  if (JSON.stringify(state.job) !== JSON.stringify(job)) {
    throw new InvalidArgumentError(
      'to',
      `${working} holds the beginning of another quantisation (other format, or the source has changed since)`,
      'delete that folder, or write to another one',
    );
  }
  for (const shard of state.shards) {
    signal?.throwIfAborted();
    const path = join(working, shard.file);
    const size = await stat(path).then(
      (found) => found.size,
      () => -1,
    );
    if (size === shard.bytes && (await sha256(path, signal)) === shard.sha256) kept.set(shard.file, shard);
    else await rm(path, { force: true });
  }
  return kept;
}

export async function saveProgress(working: string, job: Job, shards: Iterable<FinishedShard>): Promise<void> {
  await writeDurably(join(working, STATE), JSON.stringify({ job, shards: [...shards] }));
}

/** Replaces a file at once: after a power cut there is the old one or the new one. */
export async function writeDurably(path: string, text: string): Promise<void> {
  const file = await open(`${path}.new`, 'w');
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.new`, path);
}

export async function sha256(path: string, signal?: AbortSignal): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash, { signal });
  return hash.digest('hex');
}

/**
 * Takes the working folder for this process; the result gives it back. The lock is a name of the kernel's own (a Unix socket of
 * Linux's abstract kind): it ends with its holder, however that ends.
 */
export async function lock(working: string): Promise<() => Promise<void>> {
  const name = createHash('sha256')
    .update(await realpath(working))
    .digest('hex')
    .slice(0, 40);
  const server = createServer().unref();
  await new Promise<void>((taken, refused) => {
    server.once('listening', taken).once('error', (error: NodeJS.ErrnoException) => {
      const held = new BusyError(`another process is writing ${working}`, 'wait for it, or stop it');
      refused(error.code === 'EADDRINUSE' ? held : error);
    });
    server.listen({ path: `\0sigmoe-quantize-${name}`, exclusive: true });
  });
  return () => new Promise((done) => server.close(() => done()));
}
