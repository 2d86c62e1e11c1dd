/**
 * Finds the addon's file and loads it: the local build, then the prebuilt files of the package. What failed is listed with
 * the command that helps; where the addon came from is kept for `sigmoe doctor`.
 */
import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { UnsupportedError } from './errors.js';

/** Which file is in use, and why it and no other. */
export interface AddonOrigin {
  path: string;
  kind: 'built' | 'prebuilt';
  reason: string;
}

interface Attempt {
  path: string;
  failure: unknown;
}

const require = createRequire(import.meta.url);
const nodeGypBuild = require('node-gyp-build') as { path(directory: string): string };

/** Loads the addon of the package at `root`; throws an UnsupportedError that lists every attempt. */
export function loadAddon(root: string): { addon: unknown; origin: AddonOrigin } {
  const prebuilds = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
  const attempts: Attempt[] = [];
  for (const path of candidates(root, prebuilds, attempts)) {
    try {
      return { addon: require(path), origin: originOf(path, root, attempts) };
    } catch (failure) {
      attempts.push({ path, failure });
    }
  }
  throw loadFailure(root, prebuilds, attempts);
}

// node-gyp-build names one file. When that is a local build which does not load, the prebuilt files are tried as well.
function* candidates(root: string, prebuilds: string, attempts: Attempt[]): Generator<string> {
  let first: string | undefined;
  try {
    first = nodeGypBuild.path(root);
  } catch {
    attempts.push({ path: join(root, 'build', 'Release'), failure: 'no addon there' });
    attempts.push({ path: prebuilds, failure: 'no prebuilt addon for this platform there' });
    return;
  }
  yield first;
  for (const path of addonsIn(prebuilds)) if (path !== first) yield path;
}

function addonsIn(folder: string): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => name.endsWith('.node'))
      .map((name) => join(folder, name));
  } catch {
    return [];
  }
}

function originOf(path: string, root: string, attempts: Attempt[]): AddonOrigin {
  const failed = attempts.map((attempt) => `; ${describe(attempt)}`).join('');
  if (path.startsWith(join(root, 'build'))) {
    return { path, kind: 'built', reason: `compiled on this machine, which goes before a prebuilt one${failed}` };
  }
  const reason = attempts.length === 0 ? 'prebuilt, since nothing was compiled on this machine' : `prebuilt${failed}`;
  return { path, kind: 'prebuilt', reason };
}

function loadFailure(root: string, prebuilds: string, attempts: Attempt[]): UnsupportedError {
  const causes = attempts.flatMap(({ failure }) => (failure instanceof Error ? [failure] : []));
  const disabled = causes.some((cause) => 'code' in cause && cause.code === 'ERR_DLOPEN_DISABLED');
  const compile =
    'compile it here, with g++ 12 or newer, CMake 3.20 or newer and make or ninja: ' +
    `npx cmake-js compile --directory ${JSON.stringify(root)}`;
  const system = `${process.platform}-${process.arch}, ${libc()}, Node ${process.version}`;
  return new UnsupportedError(
    `the native addon of sigmoe cannot be loaded on ${system}; tried ${attempts.map(describe).join('; ')}`,
    disabled ? `start Node without --no-addons (it is read from NODE_OPTIONS too); the addon is in ${prebuilds}` : compile,
    { cause: causes.length === 1 ? causes[0] : new AggregateError(causes) },
  );
}

function describe({ path, failure }: Attempt): string {
  return `${path}: ${failure instanceof Error ? failure.message.replace(`${path}: `, '') : String(failure)}`;
}

// Prebuilt files name the C library they are for: the usual reason why one does not load.
function libc(): string {
  if (process.platform !== 'linux') return 'not Linux';
  const { header } = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return header?.glibcVersionRuntime === undefined ? 'a C library that is not glibc' : `glibc ${header.glibcVersionRuntime}`;
}
