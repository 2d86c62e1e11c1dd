/**
 * Reads a bundle in one pass and checks all of it: only plain files, only below its own folder, each as the manifest at the end
 * says. Until then nothing in it is trusted, so whoever keeps what it yields keeps it apart.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Parser, type ReadEntry } from 'tar';
import { AbortError, CheckpointError, EngineError, IoError } from '../errors.js';
import { checkRelativePath } from '../hub/ids.js';
import { anySignal } from '../hub/signals.js';
import { type BundledFile, MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, type Manifest, ROOT, readManifest } from './manifest.js';
import type { BundleFacts, BundleProgress } from './write.js';

export interface ReadOptions {
  onProgress?: ((progress: BundleProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Takes a file's bytes as they come. */
export type Keep = (path: string, data: AsyncIterable<Buffer>) => Promise<void>;

/** Checks a bundle; `keep` gets every file, the manifest last. */
export async function readBundle(path: string, { onProgress, signal }: ReadOptions, keep: Keep = drain): Promise<BundleFacts> {
  const bytes = await checkArchive(path);
  const failed = new AbortController();
  const all = anySignal(failed.signal, ...(signal === undefined ? [] : [signal]));
  const fail = (error: unknown) => failed.abort(error);
  const found = new Map<string, Omit<BundledFile, 'executable'>>();
  let manifest: Manifest | undefined;
  // One after the other: the parser hands out the next entry when this one is read.
  let last: Promise<void> = Promise.resolve();
  const parser = new Parser({ strict: true, maxMetaEntrySize: 64 * 1024, brotli: false, zstd: false });
  const refuse = (entry: ReadEntry) =>
    fail(new CheckpointError(`${path}: ${JSON.stringify(entry.path.slice(0, 120))} is no plain file`));
  parser.on('ignoredEntry', refuse);
  parser.on('entry', (entry: ReadEntry) => {
    last = last.then(() => readEntry(entry)).catch(fail);
  });
  async function readEntry(entry: ReadEntry): Promise<void> {
    all.throwIfAborted();
    if (entry.type !== 'File' || entry.linkpath) return refuse(entry);
    if (!entry.path.startsWith(ROOT))
      throw new CheckpointError(`${path}: ${JSON.stringify(entry.path.slice(0, 120))} is outside ${ROOT}`);
    const name = checkRelativePath(entry.path.slice(ROOT.length), path);
    if (manifest !== undefined) throw new CheckpointError(`${path}: ${name} comes after the manifest`);
    if (found.has(name)) throw new CheckpointError(`${path}: ${name} is there twice`);
    if (found.size >= MAX_FILES) throw new CheckpointError(`${path}: more than ${MAX_FILES} files`);
    const kept: Buffer[] | undefined = name === MANIFEST ? [] : undefined;
    if (kept !== undefined && entry.size > MAX_MANIFEST_BYTES) throw new CheckpointError(`${path}: its manifest is too long`);
    const hash = createHash('sha256');
    await keep(
      name,
      each(entry, all, (data) => {
        hash.update(data);
        kept?.push(data);
      }),
    );
    if (kept === undefined) found.set(name, { path: name, size: entry.size, sha256: hash.digest('hex') });
    else manifest = readManifest(Buffer.concat(kept).toString(), path);
  }
  const whole = createHash('sha256');
  let bytesDone = 0;
  const sink = new Writable({
    write(chunk: Buffer, _, done) {
      whole.update(chunk);
      bytesDone += chunk.length;
      onProgress?.({ bytesDone, bytesTotal: bytes });
      if (parser.write(chunk)) done();
      else parser.once('drain', () => done());
    },
    final(done) {
      parser.once('end', () => done());
      parser.end();
    },
  });
  parser.on('error', (error: Error) =>
    fail(new CheckpointError(`${path}: a damaged archive: ${error.message}`, '', { cause: error })),
  );
  try {
    await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), sink, { signal: all });
    await last;
    all.throwIfAborted();
    if (manifest === undefined) throw new CheckpointError(`${path}: no manifest at its end: it was cut short`, 'copy it again');
    compare(found, manifest, path);
    return { path, bytes, sha256: whole.digest('hex'), manifest };
  } catch (error) {
    if (signal?.aborted) throw new AbortError(`reading ${path} was aborted`, undefined, { cause: signal.reason });
    const first: unknown = failed.signal.aborted ? failed.signal.reason : error;
    fail(first);
    await last;
    if (first instanceof EngineError) throw first;
    throw new IoError(`${path}: ${first instanceof Error ? first.message : String(first)}`, '', { cause: first });
  }
}

function compare(found: Map<string, Omit<BundledFile, 'executable'>>, { files }: Manifest, path: string): void {
  for (const { path: name, size, sha256 } of files) {
    const there = found.get(name);
    if (there === undefined) throw new CheckpointError(`${path}: ${name} is missing`, 'copy it again');
    if (there.size !== size)
      throw new CheckpointError(`${path}: ${name}: ${size} bytes are listed, ${there.size} found`, 'copy it again');
    if (there.sha256 !== sha256) {
      throw new CheckpointError(`${path}: ${name}: SHA-256 ${sha256} is listed, ${there.sha256} found`, 'copy it again');
    }
    found.delete(name);
  }
  const [extra] = found.keys();
  if (extra !== undefined) throw new CheckpointError(`${path}: ${extra} is not in its manifest`, 'do not trust this archive');
}

/** The length of an archive that begins as one. A compressed one would have to be unpacked to be checked. */
async function checkArchive(path: string): Promise<number> {
  try {
    await using file = await open(path);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(512), 0, 512, 0);
    if (bytesRead === 512 && buffer.toString('latin1', 257, 262) === 'ustar') return (await file.stat()).size;
  } catch (cause) {
    throw new IoError(`${path}: ${(cause as Error).message}`, '', { cause });
  }
  throw new CheckpointError(`${path}: not a bundle: it is no plain tar archive`, 'sigmoe bundle MODEL FILE makes one');
}

async function* each(entry: ReadEntry, signal: AbortSignal, onData: (data: Buffer) => void): AsyncGenerator<Buffer> {
  for await (const data of entry as AsyncIterable<Buffer>) {
    signal.throwIfAborted();
    onData(data);
    yield data;
  }
}

async function drain(_path: string, data: AsyncIterable<Buffer>): Promise<void> {
  for await (const _ of data);
}
