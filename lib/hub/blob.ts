/**
 * One file from a hub into the cache: its ranges side by side, what is missing of each, until the whole has the hash that was
 * listed. Under its own name there is never anything else.
 */
import { existsSync } from 'node:fs';
import { rename } from 'node:fs/promises';
import { DownloadError, IoError } from '../errors.js';
import { digest } from './digest.js';
import { Passing } from './failures.js';
import { type Answer, classify, discard, type Http } from './http.js';
import type { RemoteFile } from './listing.js';
import { PartFile, type Range, waitForOwner } from './part_file.js';
import type { Progress } from './progress.js';
import { type Policy, retrying } from './retry.js';
import type { Semaphore } from './semaphore.js';
import { anySignal } from './signals.js';
import { freeBytes } from './space.js';

export interface Fetching {
  http: Http;
  policy: Policy;
  /** Bounds the requests under way. */
  requests: Semaphore;
  progress: Progress;
  signal: AbortSignal;
  onNote(line: string): void;
}

/** A try that brought this much counts as none that failed: a connection may be cut as often as it likes. */
const PROGRESS_BYTES = 256 * 1024;

/** The server sends whole files where a range was asked. */
class RangeIgnored extends Error {}

/** Settles when `blob` holds the file. */
export async function fetchBlob(file: RemoteFile, url: string, blob: string, fetching: Fetching): Promise<void> {
  const { progress, signal, onNote } = fetching;
  await waitForOwner(blob, signal, onNote);
  for (let second = false; !existsSync(blob); second = true) {
    const found = await fetchOnce(file, url, blob, fetching);
    if (found === file.hash.hex) return;
    progress.known(file, -file.size);
    // Bytes of an earlier try may be what is wrong. Once: a server that keeps sending others does not mean this file.
    if (!second) continue;
    const { algorithm, hex } = file.hash;
    throw new DownloadError(
      `${file.path}: wrong hash: ${algorithm} ${hex} is listed, ${found} arrived`,
      'nothing of it was kept: try again, and if it stays so, something on the way changes the file',
    );
  }
}

/** The hash of what arrived; the blob is in place if it is the right one, else nothing is left. */
async function fetchOnce(file: RemoteFile, url: string, blob: string, fetching: Fetching): Promise<string> {
  const { policy, progress, signal } = fetching;
  const part = await PartFile.open(blob, file.size, policy.chunkBytes);
  try {
    progress.known(file, part.doneBytes);
    try {
      await fetchRanges(part, file, url, fetching);
    } catch (error) {
      if (!(error instanceof RangeIgnored)) throw error;
      progress.known(file, -part.doneBytes);
      await part.restart(file.size);
      await fetchRanges(part, file, url, fetching);
    }
    await part.save();
    const found = await digest(part.path, file.hash.algorithm, signal);
    if (found === file.hash.hex) {
      await part.sync();
      await rename(part.path, blob);
    }
    await PartFile.discard(blob);
    return found;
  } catch (error) {
    // Where the journal cannot be written, the next download finds an older one.
    await part.save().catch(() => {});
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    const asked = file.size - part.doneBytes;
    const free = await freeBytes(blob);
    throw new IoError(
      `${file.path}: the disk is full: ${asked} more bytes asked, ${free} free`,
      'make room; what arrived is kept',
      {
        cause: error,
      },
    );
  } finally {
    await part.close();
  }
}

/** Fetches what is missing; the first failure ends all, and settles when all have ended. */
async function fetchRanges(part: PartFile, file: RemoteFile, url: string, fetching: Fetching): Promise<void> {
  const failed = new AbortController();
  const signal = anySignal(fetching.signal, failed.signal);
  let first: { error: unknown } | undefined;
  const missing = part.ranges.filter(({ begin, end, done }) => begin + done < end);
  await Promise.all(
    missing.map((range) =>
      fetching.requests
        .run(signal, () => fetchRange(part, range, file, url, { ...fetching, signal }))
        .catch((error: unknown) => {
          first ??= { error };
          failed.abort();
        }),
    ),
  );
  if (first !== undefined) throw first.error;
}

async function fetchRange(
  part: PartFile,
  range: Range,
  file: RemoteFile,
  url: string,
  { http, policy, progress, signal, onNote }: Fetching,
): Promise<void> {
  let before = 0;
  const attempt = async () => {
    before = range.done;
    const begin = range.begin + range.done;
    const whole = begin === 0 && range.end === file.size;
    const headers: Record<string, string> = whole ? {} : { range: `bytes=${begin}-${range.end - 1}` };
    const answer = await http.get(url, headers, signal);
    const expected = range.end - begin;
    try {
      checkAnswer(answer, begin, range.end, file);
      let arrived = 0;
      for await (const data of answer.body as AsyncIterable<Buffer>) {
        arrived += data.length;
        if (arrived > expected) throw wrongLength(file, `more than ${file.size} bytes arrive`);
        await part.write(range, data);
        progress.fetched(file, data.length);
      }
      if (arrived < expected) throw new Passing(`${file.path}: the connection was cut after ${range.begin + range.done} bytes`);
    } catch (error) {
      discard(answer);
      if (signal.aborted || error instanceof RangeIgnored || isFileError(error)) throw error;
      throw classify(error, file.path);
    }
  };
  const attemptWhole = async () => {
    try {
      await attempt();
    } catch (error) {
      // The only range there is, of a server that has no others: from the beginning.
      if (!(error instanceof RangeIgnored) || part.ranges.length > 1) throw error;
      progress.known(file, -range.done);
      range.done = 0;
      before = 0;
      await attempt();
    }
  };
  await retrying(policy, signal, onNote, attemptWhole, () => range.done - before >= PROGRESS_BYTES);
}

/** Whether the body is the range that was asked. Some stores send a range with status 200. */
function checkAnswer({ statusCode, headers }: Answer, begin: number, end: number, file: RemoteFile): void {
  const length = typeof headers['content-length'] === 'string' ? Number(headers['content-length']) : undefined;
  const encoding = headers['content-encoding'];
  if (encoding !== undefined && encoding !== 'identity')
    throw new Passing(`${file.path} arrives encoded as ${String(encoding)}`);
  const range = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(String(headers['content-range'] ?? ''));
  if (range !== null) {
    const [, first, last, total] = range;
    if (total !== '*' && Number(total) !== file.size) throw wrongLength(file, `${total} are there`);
    if (Number(first) !== begin || Number(last) !== end - 1)
      throw new Passing(`${file.path}: another range arrives than was asked`);
    return;
  }
  const whole = begin === 0 && end === file.size;
  if (statusCode === 206) throw new Passing(`${file.path}: a range arrives that is not named`);
  if (!whole && length === end - begin) return;
  if (!whole) throw new RangeIgnored();
  if (length !== undefined && length !== file.size) throw wrongLength(file, `${length} arrive`);
}

function wrongLength({ path, size }: RemoteFile, found: string): Passing {
  return new Passing(`${path}: wrong length: ${size} bytes are listed, ${found}`);
}

function isFileError(error: unknown): boolean {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  return ['ENOSPC', 'EDQUOT', 'EIO', 'EACCES', 'EROFS', 'EFBIG', 'EBADF'].includes(code);
}
