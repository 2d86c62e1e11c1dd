// The oldest system a shared object runs on: the newest symbol version it asks of glibc and of libstdc++.
//   node scripts/prebuild-floor.mjs FILE [GLIBC]    prints both as JSON; fails when FILE needs a newer glibc than that
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { runMain, ScriptError } from './tools.mjs';

/** { GLIBC: '2.34', GLIBCXX: '3.4.30' }, or undefined without objdump. */
export function neededVersions(file) {
  const { status, stdout } = spawnSync('objdump', ['-T', file], { encoding: 'utf8', maxBuffer: 1 << 26 });
  if (status !== 0) return undefined;
  const newest = {};
  for (const line of stdout.split('\n')) {
    const [, library, version] = /\*UND\*.*\((GLIBC|GLIBCXX)_([\d.]+)\)/.exec(line) ?? [];
    if (library !== undefined && (newest[library] === undefined || isAbove(version, newest[library])))
      newest[library] = version;
  }
  return newest;
}

/** Throws when the file needs a newer glibc than `limit`. */
export function checkFloor(file, needed, limit) {
  if (!isAbove(needed.GLIBC, limit)) return;
  throw new ScriptError(
    `${file} needs glibc ${needed.GLIBC}, more than ${limit}: build it on an older system, as .github/workflows/build.yml does`,
  );
}

// As numbers: 2.34 is above 2.4.
function isAbove(version, other) {
  return version.localeCompare(other, 'en', { numeric: true }) > 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await runMain(() => {
    const [file, limit] = process.argv.slice(2);
    const needed = file === undefined ? undefined : neededVersions(file);
    if (needed === undefined)
      throw new ScriptError('usage: node scripts/prebuild-floor.mjs FILE [GLIBC], with objdump on the PATH');
    console.log(JSON.stringify(needed));
    if (limit !== undefined) checkFloor(file, needed, limit);
  });
}
