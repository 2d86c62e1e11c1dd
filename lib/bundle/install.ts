/** Unpacks a bundle: into a folder beside the one that was named, which takes its name when all of it has been checked. */
import { chmod, mkdir, mkdtemp, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { InvalidArgumentError, IoError, UnsupportedError } from '../errors.js';
import { freeBytes } from '../hub/space.js';
import { LAUNCHER, type Manifest } from './manifest.js';
import { type ReadOptions, readBundle } from './read.js';
import type { BundleFacts } from './write.js';

export interface InstalledBundle extends BundleFacts {
  folder: string;
  /** The program to start. */
  program: string;
  models: string[];
}

/** Checks a bundle and unpacks it to `folder`, which must not exist or be empty. Makes no connection. */
export async function installBundle(path: string, folder: string, options: ReadOptions): Promise<InstalledBundle> {
  const target = resolve(folder);
  await checkTarget(target);
  await mkdir(dirname(target), { recursive: true });
  const { size } = await stat(path).catch((cause: Error) => {
    throw new IoError(`${path}: ${cause.message}`, '', { cause });
  });
  const free = await freeBytes(dirname(target));
  if (size > free) throw new IoError(`${target}: about ${size} bytes are asked, ${free} free`, 'choose a larger disk');
  const apart = await mkdtemp(`${target}.installing-`);
  try {
    const made = new Set<string>();
    const facts = await readBundle(path, options, async (name, data) => {
      const inside = dirname(join(apart, name));
      if (!made.has(inside)) await mkdir(inside, { recursive: true });
      made.add(inside);
      await using file = await open(join(apart, name), 'wx', 0o644);
      for await (const part of data) await file.writeFile(part);
    });
    checkMachine(facts.manifest, path);
    for (const { path: name, executable } of facts.manifest.files) if (executable) await chmod(join(apart, name), 0o755);
    await chmod(apart, 0o755);
    await rename(apart, target);
    const models = facts.manifest.models.map((name) => join(target, name));
    return { ...facts, folder: target, program: join(target, LAUNCHER), models };
  } catch (error) {
    await rm(apart, { recursive: true, force: true });
    throw error;
  }
}

async function checkTarget(target: string): Promise<void> {
  const there = await readdir(target).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw new InvalidArgumentError('folder', `${target}: it cannot be installed there: ${error.message}`);
  });
  if (there.length > 0)
    throw new InvalidArgumentError('folder', `${target} is not empty`, 'name a folder that is not there yet');
}

function checkMachine({ platform, arch }: Manifest, path: string): void {
  if (platform === process.platform && arch === process.arch) return;
  throw new UnsupportedError(
    `${path} is for ${platform}-${arch}, this is ${process.platform}-${process.arch}`,
    'make one there',
  );
}
