// The oldest system a shared object runs on: the newest symbol version it asks of glibc and of libstdc++.
import { spawnSync } from 'node:child_process';

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

export function isAbove(version, other) {
  return version.localeCompare(other, 'en', { numeric: true }) > 0;
}
