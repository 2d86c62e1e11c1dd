/** An addon that cannot be loaded: every attempt and the next command are in one error. And what the prebuilt file asks of a system. */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { loadAddon } from '../../lib/addon.js';
import { UnsupportedError } from '../../lib/index.js';
import { folderWith, root } from '../helpers/files.js';

const addon = join(root, 'build/Release/sigmoe.node');
const platform = `${process.platform}-${process.arch}`;

/** A package folder whose local build and prebuilt file hold these; `true` is the real addon. */
function packageWith(built: string | boolean, prebuilt: string | boolean): string {
  const folder = folderWith({ 'package.json': { name: 'sigmoe' } });
  const put = (content: string | boolean, path: string, name: string): void => {
    if (content === false) return;
    mkdirSync(join(folder, path), { recursive: true });
    if (content === true) copyFileSync(addon, join(folder, path, name));
    else writeFileSync(join(folder, path, name), content);
  };
  put(built, 'build/Release', 'sigmoe.node');
  put(prebuilt, `prebuilds/${platform}`, 'sigmoe.glibc.node');
  return folder;
}

function failureOf(folder: string): UnsupportedError {
  try {
    loadAddon(folder);
  } catch (error) {
    if (error instanceof UnsupportedError) return error;
    throw error;
  }
  throw new Error('the addon was loaded');
}

describe('loading', () => {
  test('nothing there: both places are named, and the command that compiles', () => {
    const folder = packageWith(false, false);
    const { message, hint } = failureOf(folder);
    expect(message).toContain(`${platform}, glibc `);
    expect(message).toContain(`Node ${process.version}`);
    expect(message).toContain(`${join(folder, 'build', 'Release')}: no addon there`);
    expect(message).toContain(`${join(folder, 'prebuilds', platform)}: no prebuilt addon`);
    expect(hint).toContain(`npx cmake-js compile --directory ${JSON.stringify(folder)}`);
    expect(message).not.toContain('\n');
  });

  test('both files are broken: the loader is quoted for each', () => {
    const folder = packageWith('not a library', 'not one either');
    const { message, cause } = failureOf(folder);
    expect(message).toMatch(/build\/Release\/sigmoe\.node: (file too short|invalid ELF header); /);
    expect(message).toMatch(/sigmoe\.glibc\.node: (file too short|invalid ELF header)$/);
    expect((cause as AggregateError).errors).toHaveLength(2);
  });

  test('a local build that does not load gives way to the prebuilt file, and that is said', () => {
    const folder = packageWith('not a library', true);
    const { addon: loaded, origin } = loadAddon(folder);
    expect(loaded).toHaveProperty('load');
    expect(origin).toMatchObject({
      kind: 'prebuilt',
      path: join(folder, 'prebuilds', platform, 'sigmoe.glibc.node'),
      reason: expect.stringMatching(/^prebuilt; .*build\/Release\/sigmoe\.node: (file too short|invalid ELF header)$/),
    });
  });

  test('a local build goes before a prebuilt file', () => {
    expect(loadAddon(packageWith(true, 'not a library')).origin.kind).toBe('built');
    expect(loadAddon(packageWith(false, true)).origin.reason).toContain('nothing was compiled');
  });

  test('--no-addons is named as the reason', () => {
    const program = `import('${root}/dist/index.js').then(({ devices }) => devices())
      .catch((error) => console.log(error.name, error.hint))`;
    const { stdout } = spawnSync(process.execPath, ['--no-addons', '-e', program], { encoding: 'utf8' });
    expect(stdout).toMatch(/^UnsupportedError start Node without --no-addons/);
  });
});

describe('the oldest system that the addon runs on', () => {
  const floor = (...args: string[]): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(process.execPath, [join(root, 'scripts/prebuild-floor.mjs'), ...args], { encoding: 'utf8' });
  const { status, stdout } = floor(addon);

  test.skipIf(status !== 0)('has the glibc that the package promises', () => {
    const { header } = process.report.getReport() as { header: { glibcVersionRuntime: string } };
    const [, minor = 0] = header.glibcVersionRuntime.split('.').map(Number);
    console.log(`glibc ${header.glibcVersionRuntime} here, the addon needs ${stdout.trim()}`);
    // On a newer system than Debian 12 the linker takes newer symbols: there, CI makes the prebuilt files in a container.
    expect(floor(addon, minor <= 36 ? '2.34' : header.glibcVersionRuntime)).toMatchObject({ status: 0 });
  });

  test.skipIf(status !== 0)('is compared by number', () => {
    const refused = floor(addon, '2.4');
    expect(refused).toMatchObject({ status: 1, stderr: expect.stringContaining('more than 2.4: build it on an older system') });
  });
});
