/** Writes a cache entry as cache.ts reads it. Every name appears whole or not at all: written beside, then renamed. */
import { randomBytes } from 'node:crypto';
import { lstat, mkdir, readlink, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { IoError } from '../errors.js';
import type { Tree } from './cache.js';
import type { Source } from './environment.js';
import type { Listing, RemoteFile } from './listing.js';

export class Store {
  constructor(
    private readonly source: Source,
    readonly entry: string,
  ) {}

  async prepare(): Promise<void> {
    await mkdir(join(this.entry, 'blobs'), { recursive: true });
    await mkdir(join(this.entry, 'snapshots'), { recursive: true });
  }

  blobOf({ hash }: RemoteFile): string {
    return join(this.entry, 'blobs', hash.hex);
  }

  snapshotOf(commit: string): string {
    return join(this.entry, 'snapshots', commit);
  }

  /** Whether the content is there. A blob of another length was damaged by somebody: it is removed. */
  async has(file: RemoteFile): Promise<boolean> {
    const blob = this.blobOf(file);
    try {
      if ((await stat(blob)).size === file.size) return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
    await rm(blob, { force: true });
    return false;
  }

  /** Gives a blob its name in a snapshot. */
  async link(commit: string, file: RemoteFile): Promise<void> {
    await linkTo(this.blobOf(file), join(this.snapshotOf(commit), file.path));
  }

  /** What the commit holds, in the words of Hugging Face's library. */
  async writeTree({ commit, files }: Listing): Promise<void> {
    const tree: Tree = { format_version: 1, files: {} };
    for (const { path, size, hash } of files) {
      tree.files[path] =
        hash.algorithm === 'sha256' ? { size, blob_id: '', lfs_sha256: hash.hex, lfs_size: size } : { size, blob_id: hash.hex };
    }
    await replace(join(this.entry, 'trees', `${commit}.json`), (path) => writeFile(path, JSON.stringify(tree, null, 1)));
  }

  /** From now on the revision is this commit. Called last, when its snapshot is whole. */
  async publish(revision: string, { commit }: Listing, files: readonly RemoteFile[]): Promise<void> {
    if (revision === commit) return;
    if (this.source === 'huggingface') {
      await replace(join(this.entry, 'refs', revision), (path) => writeFile(path, commit));
      return;
    }
    const name = join(this.entry, 'snapshots', revision);
    const there = await lstat(name).catch(() => undefined);
    if (there?.isDirectory() !== true) {
      await replace(name, (path) => symlink(relative(dirname(name), this.snapshotOf(commit)), path));
      return;
    }
    // ModelScope's library made a folder of it: its files become ours one by one.
    for (const file of files) await linkTo(this.blobOf(file), join(name, file.path));
  }
}

async function linkTo(blob: string, name: string): Promise<void> {
  const target = relative(dirname(name), blob);
  if ((await readlink(name).catch(() => '')) === target) return;
  try {
    await replace(name, (path) => symlink(target, path));
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code !== 'EPERM' && code !== 'ENOTSUP' && code !== 'EOPNOTSUPP') throw cause;
    const hint = 'set HF_HOME (or MODELSCOPE_CACHE) to a folder on a disk that has symbolic links';
    throw new IoError(`the cache cannot hold links: ${message}`, hint, { cause });
  }
}

async function replace(path: string, write: (path: string) => Promise<void>): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const beside = join(dirname(path), `.${randomBytes(6).toString('hex')}.tmp`);
  try {
    await write(beside);
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    throw error;
  }
}
