/** Writes a bundle in one pass: every file is read once, hashed and archived as it goes by, whatever its size. */
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { access, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Header, Pack, ReadEntry } from 'tar';
import { AbortError, EngineError, InvalidArgumentError, IoError } from '../errors.js';
import { anySignal } from '../hub/signals.js';
import { freeBytes } from '../hub/space.js';
import { type Item, modelItems, packageFacts, programItems } from './contents.js';
import { type BundledFile, MANIFEST, type Manifest, ROOT } from './manifest.js';

export interface BundleOptions {
  /** Models by the name they get in the bundle and the folder they are in. */
  models: readonly { name: string; folder: string }[];
  onProgress?: ((progress: BundleProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface BundleProgress {
  bytesDone: number;
  bytesTotal: number;
}

export interface BundleFacts {
  path: string;
  bytes: number;
  /** Of the archive itself: to be told by another way than the archive travels. */
  sha256: string;
  manifest: Manifest;
}

const PART_BYTES = 1 << 20;

/** Makes an archive of the package, all it needs, and models. `path` must not exist yet. */
export async function writeBundle(path: string, options: BundleOptions): Promise<BundleFacts> {
  const { models } = options;
  const items = await programItems();
  for (const { name, folder } of models) items.push(...(await modelItems(folder, name)));
  const folders = models.map(({ name }) => `models/${name}`);
  return writeArchive(path, items, folders, options);
}

/** Makes an archive of these items, of which `models` are the folders of models. */
export async function writeArchive(
  path: string,
  items: readonly Item[],
  models: string[],
  options: Omit<BundleOptions, 'models'>,
): Promise<BundleFacts> {
  const { signal } = options;
  const exists = await access(path).then(
    () => true,
    () => false,
  );
  if (exists)
    throw new InvalidArgumentError('path', `${path}: there is such a file already`, 'choose another name, or remove it');
  const sizes = await Promise.all(items.map(sizeOf));
  const bytesTotal = sizes.reduce((sum, size) => sum + size, 0);
  const asked = bytesTotal + items.length * 1024;
  const free = await freeBytes(path);
  if (asked > free) throw new IoError(`${path}: about ${asked} bytes are asked, ${free} free`, 'choose a larger disk');
  const { version, node } = await packageFacts();
  const { platform, arch } = process;
  const manifest: Manifest = { format: 1, sigmoe: version, platform, arch, node, models, files: [] };

  const beside = `${path}.${randomBytes(6).toString('hex')}.incomplete`;
  const pack = new Pack({ portable: true });
  const hash = createHash('sha256');
  const failed = new AbortController();
  const all = anySignal(failed.signal, ...(signal === undefined ? [] : [signal]));
  let bytes = 0;
  const tee = new Transform({
    transform(chunk: Buffer, _, done) {
      bytes += chunk.length;
      hash.update(chunk);
      done(null, chunk);
    },
  });
  const written = pipeline(pack, tee, createWriteStream(beside, { flags: 'wx' }), { signal: all });
  try {
    const filled = fill(pack, items, sizes, manifest.files, { ...options, signal: all, bytesTotal }).then(async () => {
      const text = Buffer.from(`${JSON.stringify(manifest, null, 1)}\n`);
      await addEntry(pack, { source: text, path: MANIFEST, executable: false }, text.length, () => {}, all);
      pack.end();
    });
    // Whichever fails first ends the other.
    filled.catch((error: unknown) => failed.abort(error));
    await Promise.all([
      filled,
      written.catch((error: unknown) => Promise.reject(failed.signal.aborted ? failed.signal.reason : error)),
    ]);
    await rename(beside, path);
  } catch (error) {
    failed.abort(error);
    await written.catch(() => {});
    await rm(beside, { force: true });
    throw explain(error, path, signal);
  }
  return { path, bytes, sha256: hash.digest('hex'), manifest };
}

async function fill(
  pack: Pack,
  items: readonly Item[],
  sizes: readonly number[],
  files: BundledFile[],
  { onProgress, signal, bytesTotal }: Omit<BundleOptions, 'models'> & { signal: AbortSignal; bytesTotal: number },
): Promise<void> {
  let bytesDone = 0;
  for (const [i, item] of items.entries()) {
    const size = sizes[i] ?? 0;
    const hash = createHash('sha256');
    const onData = (data: Buffer) => {
      hash.update(data);
      bytesDone += data.length;
      onProgress?.({ bytesDone, bytesTotal });
    };
    await addEntry(pack, item, size, onData, signal);
    files.push({ path: item.path, size, executable: item.executable, sha256: hash.digest('hex') });
  }
}

/** Adds one file, at the pace of the archive. */
async function addEntry(
  pack: Pack,
  { source, path, executable }: Item,
  size: number,
  onData: (data: Buffer) => void,
  signal: AbortSignal,
): Promise<void> {
  const header = new Header({ path: ROOT + path, type: 'File', size, mode: executable ? 0o755 : 0o644, mtime: new Date(0) });
  const entry = new ReadEntry(header);
  pack.add(entry);
  const parts = Buffer.isBuffer(source) ? [source] : await partsOf(source, size, signal);
  let done = 0;
  for await (const part of parts) {
    done += part.length;
    if (done > size) break;
    onData(part);
    if (!entry.write(part)) await drained(entry, signal);
  }
  if (done !== size) throw new IoError(`${String(source)}: its length changed while it was read`, 'begin again');
  entry.end();
}

/** Most files are small, and quicker read whole. */
async function partsOf(source: string, size: number, signal: AbortSignal): Promise<AsyncIterable<Buffer> | Buffer[]> {
  if (size > PART_BYTES) return createReadStream(source, { highWaterMark: PART_BYTES, signal });
  return [await readFile(source, { signal })];
}

function drained(entry: ReadEntry, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    entry.once('drain', () => {
      signal.removeEventListener('abort', onAbort);
      resolve();
    });
    if (signal.aborted) onAbort();
  });
}

async function sizeOf({ source }: Item): Promise<number> {
  return Buffer.isBuffer(source) ? source.length : (await stat(source)).size;
}

function explain(error: unknown, path: string, signal: AbortSignal | undefined): EngineError {
  if (signal?.aborted) return new AbortError(`writing ${basename(path)} was aborted`, undefined, { cause: signal.reason });
  if (error instanceof EngineError) return error;
  return new IoError(`${path}: ${error instanceof Error ? error.message : String(error)}`, '', { cause: error });
}
