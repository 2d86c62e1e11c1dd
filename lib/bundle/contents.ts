/** What goes into a bundle: the package as it runs here, what it needs, backend libraries that are here, and models. */
import { existsSync } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NotFoundError } from '../errors.js';
import { addonOrigin } from '../native.js';
import { closureOf } from './dependencies.js';
import { LAUNCHER } from './manifest.js';

export interface Item {
  /** A file to read, or content. */
  source: string | Buffer;
  /** In the bundle. */
  path: string;
  executable: boolean;
}

const packageRoot = fileURLToPath(new URL('../..', import.meta.url));

const LAUNCHER_TEXT = `#!/bin/sh
# Runs the sigmoe of this folder. SIGMOE_NODE names the Node to run it with.
here=$(dirname -- "$(readlink -f -- "$0")")
exec "\${SIGMOE_NODE:-node}" "$here/node_modules/sigmoe/dist/cli/main.js" "$@"
`;

/** Libraries of devices come in packages of their own. */
const BACKEND_PACKAGES = ['@sigmoe/linux-x64-cuda'];

/** Needed to compile the addon; a bundle holds it compiled. */
const BUILD_PACKAGES = ['cmake-js', 'node-addon-api'];

/** Files of packages that no program reads, but for licences. */
const UNREAD = /\.(map|md|markdown|[cm]?ts|flow)$/i;
const LICENCE = /^(licen[cs]e|copying|notice)/i;

export async function programItems(): Promise<Item[]> {
  if (!existsSync(join(packageRoot, 'dist/cli/main.js'))) {
    throw new NotFoundError(`${packageRoot} holds no built sigmoe`, 'npm run build');
  }
  const items: Item[] = [{ source: Buffer.from(LAUNCHER_TEXT), path: LAUNCHER, executable: true }];
  for (const { folder, path, name } of closureOf(packageRoot, BACKEND_PACKAGES, BUILD_PACKAGES)) {
    const files = name === 'sigmoe' ? await ownFiles(folder) : await filesOf(folder, isRead);
    for (const file of files) items.push(await itemOf(join(folder, file), join(path, file)));
  }
  return items;
}

/** A model's files, whatever they are links to. */
export async function modelItems(folder: string, name: string): Promise<Item[]> {
  const files = await filesOf(folder, (file) => !hasPart(file, '.git') && !hasPart(file, '.cache'));
  if (!files.includes('config.json')) throw new NotFoundError(`${folder}: no config.json`, 'name the folder of a model');
  return Promise.all(files.map((file) => itemOf(join(folder, file), join('models', name, file))));
}

/** The package without its sources and maps, and with the addon that is in use here. */
async function ownFiles(root: string): Promise<string[]> {
  const wanted = /^(dist|prebuilds)\/|^(package\.json|README\.md|LICENSE)$/;
  const files = (await readdir(root)).filter((name) => wanted.test(name));
  for (const folder of ['dist', 'prebuilds'].filter((name) => existsSync(join(root, name)))) {
    files.push(...(await filesOf(join(root, folder), (file) => !file.endsWith('.map'))).map((file) => join(folder, file)));
  }
  const { path: addon } = addonOrigin();
  const place = relative(root, addon);
  if (files.includes(place)) return files;
  if (place.startsWith('..')) throw new NotFoundError(`the addon in use, ${addon}, is not part of ${root}`);
  const beside = (await readdir(join(addon, '..'))).filter((name) => /^lib.*\.so(\.\d+)*$/.test(name));
  return [...files, place, ...beside.map((name) => join(place, '..', name))];
}

function isRead(file: string): boolean {
  return !hasPart(file, 'node_modules') && (!UNREAD.test(file) || LICENCE.test(basename(file)));
}

async function filesOf(folder: string, keep: (file: string) => boolean): Promise<string[]> {
  const names = (await readdir(folder, { recursive: true })).filter(keep);
  const files: string[] = [];
  for (const name of names) if ((await stat(join(folder, name)).catch(() => undefined))?.isFile()) files.push(name);
  return files.sort();
}

async function itemOf(source: string, path: string): Promise<Item> {
  const { mode } = await stat(source);
  return { source, path, executable: (mode & 0o100) !== 0 };
}

function hasPart(file: string, name: string): boolean {
  return file.split(sep).includes(name);
}

/** A name for a model in the bundle: that of its folder, or of its id. */
export function nameOf(model: string): string {
  return basename(model.replace(/@.*$/, '').replace(/\/+$/, '')) || 'model';
}

export async function packageFacts(): Promise<{ version: string; node: string }> {
  const { version, engines } = JSON.parse(await readFile(join(packageRoot, 'package.json'), 'utf8')) as {
    version: string;
    engines: { node: string };
  };
  return { version, node: engines.node };
}
