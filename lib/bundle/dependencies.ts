/**
 * The packages that a package needs to run, laid out anew: each at the top of node_modules, or inside the one that needs it where
 * another version has that place. No registry is asked: they are taken from where they are installed.
 */
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { NotFoundError } from '../errors.js';

interface PackageJson {
  name: string;
  version: string;
  dependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

export interface InstalledPackage {
  name: string;
  version: string;
  /** Where it is installed. */
  folder: string;
  /** Where it goes: node_modules/a/node_modules/b */
  path: string;
}

/** The package in `root` and all it needs. Packages in `extra` come along where they are installed; those in `without` do not. */
export function closureOf(root: string, extra: readonly string[], without: readonly string[]): InstalledPackage[] {
  const placed = new Map<string, InstalledPackage>();
  const place = (folder: string, path: string) => {
    const { name, version } = readPackage(folder);
    const installed = { name, version, folder, path };
    placed.set(path, installed);
    return installed;
  };
  // What Node would find for a package at `path`, in the new layout.
  const found = (path: string, name: string): InstalledPackage | undefined => {
    for (let at = path; ; at = at.slice(0, at.lastIndexOf('/node_modules/'))) {
      const inside = placed.get(`${at}/node_modules/${name}`);
      if (inside !== undefined) return inside;
      if (!at.includes('/node_modules/')) return placed.get(`node_modules/${name}`);
    }
  };
  const own = place(realpathSync(root), `node_modules/${readPackage(root).name}`);
  const queue = [own];
  const add = (dependent: InstalledPackage, name: string, folder: string) => {
    const there = found(dependent.path, name);
    if (there?.folder === folder) return;
    const path = there === undefined ? `node_modules/${name}` : `${dependent.path}/node_modules/${name}`;
    queue.push(place(folder, path));
  };
  for (const name of extra) {
    const folder = locate(own.folder, name);
    if (folder !== undefined) add(own, name, folder);
  }
  for (let at = queue.shift(); at !== undefined; at = queue.shift()) {
    const { dependencies = {}, optionalDependencies = {} } = readPackage(at.folder);
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies })) {
      if (without.includes(name)) continue;
      const folder = locate(at.folder, name);
      if (folder !== undefined) add(at, name, folder);
      else if (!(name in optionalDependencies)) {
        throw new NotFoundError(`${at.name} needs ${name}, which is not installed`, `npm install (in ${root})`);
      }
    }
  }
  return [...placed.values()];
}

/** Where Node finds a package for code in `folder`. */
function locate(folder: string, name: string): string | undefined {
  for (let at = folder; ; at = dirname(at)) {
    const candidate = join(at, 'node_modules', name);
    if (existsSync(join(candidate, 'package.json'))) return realpathSync(candidate);
    if (at === dirname(at)) return undefined;
  }
}

export function readPackage(folder: string): PackageJson {
  return JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as PackageJson;
}
