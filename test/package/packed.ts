/** The package as a user gets it: packed once, installed offline into an empty project, run without compilers. */
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { root } from '../helpers/files.js';

export interface Ran {
  status: number | null;
  stdout: string;
  stderr: string;
}

export interface Installed {
  /** The empty project; its node_modules holds the package. */
  project: string;
  tarball: string;
  seconds: number;
  /** Runs a program with nothing on the PATH but Node, npm and a shell. */
  run(program: string, ...args: string[]): Ran;
  remove(): void;
}

/** npm beside the Node that runs, or undefined. */
function npmScript(): string | undefined {
  const named = process.env.npm_execpath;
  if (named?.endsWith('npm-cli.js')) return named;
  try {
    return realpathSync(join(dirname(process.execPath), 'npm'));
  } catch {
    return undefined;
  }
}

/**
 * The versions of this repository's lockfile for what the package depends on: npm then asks its cache for tarballs alone, which
 * `npm ci` has left there. Without it npm asks for every package's list of versions, which the cache may hold in another form.
 */
function consumerLock(): string {
  const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'));
  type Entry = [path: string, entry: { dev?: boolean; devOptional?: boolean; link?: boolean }];
  const needed = (Object.entries(packages) as Entry[]).filter(
    ([path, { dev, devOptional, link }]) => path.startsWith('node_modules/') && !dev && !devOptional && !link,
  );
  return JSON.stringify({ name: 'consumer', lockfileVersion: 3, requires: true, packages: Object.fromEntries(needed) });
}

/** Packs and installs, or says why that cannot be done here. */
export function install(): Installed | string {
  const npm = npmScript();
  if (npm === undefined) return 'npm is not beside this Node';
  const folder = mkdtempSync(join(tmpdir(), 'sigmoe-package-'));
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  const pack = (packageFolder: string, name: string): string => {
    const args = [npm, 'pack', '--pack-destination', folder];
    const { status, stderr } = spawnSync(process.execPath, args, { cwd: packageFolder, encoding: 'utf8' });
    const tarball = readdirSync(folder).find((file) => file.startsWith(name));
    if (status !== 0 || tarball === undefined) throw new Error(`npm pack: ${stderr}`);
    return join(folder, tarball);
  };
  const tarball = pack(root, 'sigmoe-0');
  const model = pack(join(root, 'packages/nano'), 'sigmoe-nano-');

  const [project, programs] = [join(folder, 'project'), join(folder, 'bin')];
  for (const path of [project, programs]) mkdirSync(path);
  writeFileSync(join(project, 'package.json'), '{ "name": "consumer", "private": true }\n');
  writeFileSync(join(project, 'package-lock.json'), consumerLock());
  symlinkSync(process.execPath, join(programs, 'node'));
  for (const name of ['npm', 'npx']) symlinkSync(join(dirname(npm), `${name}-cli.js`), join(programs, name));
  symlinkSync(realpathSync('/bin/sh'), join(programs, 'sh'));
  symlinkSync(realpathSync('/usr/bin/env'), join(programs, 'env'));

  const env = { ...process.env, PATH: programs };
  const run = (program: string, ...args: string[]): Ran => {
    const path = program === 'node' ? process.execPath : program.startsWith('/') ? program : join(programs, program);
    const { status, stdout, stderr } = spawnSync(path, args, { cwd: project, env, encoding: 'utf8' });
    return { status, stdout, stderr };
  };
  const began = performance.now();
  // Errors are asked for by name: npm run by a silent npm is silent.
  const options = ['--ignore-scripts', '--offline', '--no-audit', '--no-fund', '--loglevel=error'];
  const { status, stderr } = run('npm', 'install', tarball, model, ...options);
  if (status !== 0) {
    remove();
    if (/ENOTCACHED|ENOTFOUND|EAI_AGAIN/.test(stderr)) return "npm's cache does not hold the dependencies of the package";
    throw new Error(`npm install, exit ${status}: ${stderr}`);
  }
  const seconds = (performance.now() - began) / 1000;
  const consumer = join(root, 'test/package/consumer');
  for (const name of readdirSync(consumer)) copyFileSync(join(consumer, name), join(project, name));
  return { project, tarball, seconds, run, remove };
}
