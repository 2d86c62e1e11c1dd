/** Bundles: made, checked and installed as a person would; and archives that nobody should install. */
import { spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { Header, Pack, ReadEntry } from 'tar';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { modelItems } from '../../lib/bundle/contents.js';
import { closureOf } from '../../lib/bundle/dependencies.js';
import { installBundle, readBundle, writeBundle } from '../../lib/bundle/index.js';
import { writeArchive } from '../../lib/bundle/write.js';
import { sigmoe } from '../cli/run.js';
import { folderWith, nano } from '../helpers/files.js';
import { recordConnections } from './connections.js';

const recorded = recordConnections();
afterAll(() => {
  expect(recorded(), 'connections that bundle, verify and install made').toEqual([]);
});

describe('the bundle of this sigmoe with the bundled model', () => {
  let folder = '';
  let archive = '';
  let made: Awaited<ReturnType<typeof sigmoe>>;
  beforeAll(async () => {
    folder = folderWith({});
    archive = join(folder, 'sigmoe.tar');
    made = await sigmoe(['bundle', nano, archive, '--json']);
  });

  test('is made, and says what it is', () => {
    expect(made).toMatchObject({ status: 0, stderr: '' });
    const facts = JSON.parse(made.stdout);
    const sha256 = createHash('sha256').update(readFileSync(archive)).digest('hex');
    expect(facts).toMatchObject({ path: archive, bytes: statSync(archive).size, sha256, models: ['models/nano'] });
    expect(readdirSync(folder)).toEqual(['sigmoe.tar']);
  });

  test('is verified; one flipped bit anywhere is found', async () => {
    const { sha256 } = JSON.parse(made.stdout);
    expect(await sigmoe(['bundle', 'verify', archive, '--sha256', sha256])).toMatchObject({
      status: 0,
      stdout: `${archive}: as its checksums say\n`,
    });
    const other = await sigmoe(['bundle', 'verify', archive, '--sha256', 'f'.repeat(64)]);
    expect(other).toMatchObject({ status: 1, stdout: '' });
    expect(other.stderr).toContain('was asked');
    const damaged = join(folder, 'damaged.tar');
    cpSync(archive, damaged);
    const file = openSync(damaged, 'r+');
    const byte = Buffer.alloc(1);
    // In the first file, in the midst of a shard, in the manifest.
    for (const at of [600, 30_000_000, statSync(archive).size - 12_000]) {
      readSync(file, byte, 0, 1, at);
      writeSync(file, Buffer.from([(byte[0] ?? 0) ^ 4]), 0, 1, at);
      await expect(readBundle(damaged, {}), `at ${at}`).rejects.toMatchObject({ code: 'ERR_BAD_CHECKPOINT' });
      writeSync(file, byte, 0, 1, at);
    }
    closeSync(file);
    rmSync(damaged);
  });

  test('is installed without a network, and answers', async () => {
    const target = join(folder, 'opt/sigmoe');
    const installed = await sigmoe(['bundle', 'install', archive, target]);
    expect(installed).toMatchObject({ status: 0, stdout: `${join(target, 'sigmoe')}\n` });
    expect(installed.stderr).toContain(`next: ${target}/sigmoe generate ${target}/models/nano`);
    // An empty environment but for Node, another folder, and, where that can be, no network at all.
    const command = [join(target, 'sigmoe'), 'generate', join(target, 'models/nano'), 'What is asthma?', '--max-tokens', '5'];
    const apart = spawnSync('unshare', ['--map-root-user', '--net', 'true']).status === 0;
    const [program = '', ...args] = apart ? ['unshare', '--map-root-user', '--net', ...command] : command;
    const env = { PATH: '/usr/bin:/bin', SIGMOE_NODE: process.execPath };
    const answer = spawnSync(program, args, { cwd: '/', env, encoding: 'utf8' });
    expect(answer.stderr).toContain('never medical advice');
    expect(answer).toMatchObject({ status: 0, stdout: expect.stringMatching(/\w+ \w+/) });
    for (const name of readdirSync(nano)) {
      expect(readFileSync(join(target, 'models/nano', name)).equals(readFileSync(join(nano, name))), name).toBe(true);
    }
    const again = await sigmoe(['bundle', 'install', archive, target]);
    expect(again).toMatchObject({ status: 1, stdout: '' });
    expect(again.stderr).toContain('is not empty');
    expect(readdirSync(join(folder, 'opt'))).toEqual(['sigmoe']);
  });

  test('unpacked by hand it works as well', () => {
    const byHand = folderWith({});
    expect(spawnSync('tar', ['xf', archive, '-C', byHand]).status).toBe(0);
    const { stdout } = spawnSync(join(byHand, 'sigmoe-bundle/sigmoe'), ['--version'], {
      env: { PATH: '/usr/bin:/bin', SIGMOE_NODE: process.execPath },
      encoding: 'utf8',
    });
    expect(stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test('cut short at any place it is refused, and nothing is left', async () => {
    const cut = join(folder, 'cut.tar');
    cpSync(archive, cut);
    for (const bytes of [5_000_192, 1024, 511, 0]) {
      truncateSync(cut, bytes);
      await expect(installBundle(cut, join(folder, 'cut/target'), {})).rejects.toMatchObject({ code: 'ERR_BAD_CHECKPOINT' });
    }
    expect(readdirSync(join(folder, 'cut'))).toEqual([]);
  });

  test('an abort leaves nothing', async () => {
    const underWay = () => {
      const controller = new AbortController();
      return { signal: controller.signal, onProgress: () => controller.abort() };
    };
    const reading = installBundle(archive, join(folder, 'aborted/target'), underWay());
    await expect(reading).rejects.toMatchObject({ name: 'AbortError' });
    expect(readdirSync(join(folder, 'aborted'))).toEqual([]);
    const writing = writeBundle(join(folder, 'aborted/x.tar'), { models: [], ...underWay() });
    await expect(writing).rejects.toMatchObject({ name: 'AbortError' });
    expect(readdirSync(join(folder, 'aborted'))).toEqual([]);
  });
});

test('models are followed through links; the same content makes the same archive', async () => {
  const folder = folderWith({});
  const linked = join(folder, 'snapshot');
  mkdirSync(linked);
  for (const name of ['config.json', 'tokenizer.json']) symlinkSync(join(nano, name), join(linked, name));
  const items = await modelItems(linked, 'linked');
  const { manifest, sha256 } = await writeArchive(join(folder, 'a.tar'), items, ['models/linked'], {});
  expect(manifest.files.map(({ path, size }) => ({ path, size }))).toEqual(
    ['config.json', 'tokenizer.json'].map((name) => ({ path: `models/linked/${name}`, size: statSync(join(nano, name)).size })),
  );
  expect((await writeArchive(join(folder, 'b.tar'), items, ['models/linked'], {})).sha256).toBe(sha256);
  await expect(writeArchive(join(folder, 'b.tar'), items, [], {})).rejects.toThrow('there is such a file already');
  await expect(modelItems(folder, 'none')).rejects.toThrow('no config.json');
});

test('a program without a model is a bundle too', async () => {
  const { stdout } = await sigmoe(['bundle', '--without-model', join(folderWith({}), 'sigmoe.tar'), '--json']);
  expect(JSON.parse(stdout)).toMatchObject({ models: [], files: expect.any(Number) });
});

test.each([
  [['bundle', nano], 'expected 2 arguments, found 1', 2],
  [['bundle', 'verify', join(nano, 'config.json')], 'not a bundle', 1],
  [['bundle', 'install', '/no/such', '/tmp/never'], 'no such file', 1],
] as const)('%j fails in one line', async (args, words, status) => {
  const result = await sigmoe([...args]);
  expect(result.stderr).toContain(words);
  expect(result.stderr.trim().split('\n')).toHaveLength(1);
  expect(result).toMatchObject({ status, stdout: '' });
  expect(existsSync('/tmp/never')).toBe(false);
});

describe('an archive that somebody else made', () => {
  type Fields = { path: string; type?: string; linkpath?: string; content?: string; mode?: number };

  /** A tar of these entries, and a manifest of those that are files unless another is given. */
  async function archiveOf(entries: Fields[], manifest?: unknown): Promise<string> {
    const path = join(folderWith({}), 'evil.tar');
    const files = entries.map(({ path: name, content = '' }) => ({
      path: name.replace(/^sigmoe-bundle\//, ''),
      size: Buffer.byteLength(content),
      executable: false,
      sha256: createHash('sha256').update(content).digest('hex'),
    }));
    const { platform, arch } = process;
    const text = JSON.stringify(manifest ?? { format: 1, sigmoe: '0', platform, arch, node: '*', models: [], files });
    const pack = new Pack({ portable: true, preservePaths: true });
    const parts: Buffer[] = [];
    pack.on('data', (part: Buffer) => parts.push(part));
    const done = new Promise<void>((resolve) => pack.on('end', () => resolve()));
    for (const { content = '', ...fields } of [...entries, { path: 'sigmoe-bundle/manifest.json', content: text }]) {
      const entry = new ReadEntry(
        new Header({ mode: 0o644, mtime: new Date(0), type: 'File', size: Buffer.byteLength(content), ...fields } as object),
      );
      pack.add(entry);
      entry.end(Buffer.from(content));
    }
    pack.end();
    await done;
    writeFileSync(path, Buffer.concat(parts));
    return path;
  }

  const good = { path: 'sigmoe-bundle/sigmoe', content: 'x' };

  test('is taken when it is what it says', async () => {
    const target = join(folderWith({}), 'target');
    expect(await installBundle(await archiveOf([good]), target, {})).toMatchObject({ program: join(target, 'sigmoe') });
  });

  test.each<[string, Fields[], unknown, string]>([
    ['a path that climbs', [{ path: 'sigmoe-bundle/../../evil', content: 'x' }], undefined, 'leads out of its folder'],
    ['an absolute path', [{ path: '/tmp/evil', content: 'x' }], undefined, 'is outside sigmoe-bundle/'],
    ['a path of another folder', [{ path: 'other/evil', content: 'x' }], undefined, 'is outside sigmoe-bundle/'],
    ['a symbolic link', [{ path: 'sigmoe-bundle/a', type: 'SymbolicLink', linkpath: '/etc' }], undefined, 'is no plain file'],
    ['a hard link', [{ path: 'sigmoe-bundle/a', type: 'Link', linkpath: '/etc/passwd' }], undefined, 'is no plain file'],
    ['a device', [{ path: 'sigmoe-bundle/a', type: 'CharacterDevice' }], undefined, 'is no plain file'],
    ['a pipe', [{ path: 'sigmoe-bundle/a', type: 'FIFO' }], undefined, 'is no plain file'],
    ['a folder', [{ path: 'sigmoe-bundle/a/', type: 'Directory' }], undefined, 'is no plain file'],
    ['the same file twice', [good, good], undefined, 'is there twice'],
    ['a file that is a folder too', [good, { path: 'sigmoe-bundle/sigmoe/a' }], undefined, 'evil.tar'],
    ['a manifest that is not JSON', [good], 'text', 'manifest is of format'],
    ['a manifest of another format', [good], { format: 2 }, 'is of format 2'],
    ['a manifest without fields', [good], { format: 1 }, 'lacks fields'],
    ['a file that the manifest lacks', [good], manifestOf([]), 'is not in its manifest'],
    [
      'a file that only the manifest has',
      [],
      manifestOf([{ path: 'a', size: 0, executable: false, sha256: 'a'.repeat(64) }]),
      'a is missing',
    ],
    [
      'a manifest with a path that climbs',
      [],
      manifestOf([{ path: '../a', size: 0, executable: true, sha256: 'a'.repeat(64) }]),
      'leads out',
    ],
    ['a model that climbs', [good], { ...(manifestOf([]) as object), models: ['../../etc'] }, 'leads out of its folder'],
    ['another machine', [], { ...(manifestOf([]) as object), arch: 'mips' }, 'is for linux-mips, this is'],
    [
      'a file after the manifest',
      [{ path: 'sigmoe-bundle/manifest.json', content: '{"format": 2}' }, good],
      undefined,
      'is of format 2',
    ],
  ])('%s is refused', async (_, entries, manifest, message) => {
    const folder = folderWith({});
    const archive = await archiveOf(entries, manifest);
    const installing = installBundle(archive, join(folder, 'target'), {});
    await expect(installing).rejects.toThrow(message);
    expect(readdirSync(folder)).toEqual([]);
    expect(existsSync('/tmp/evil')).toBe(false);
  });

  function manifestOf(files: unknown[]): unknown {
    return { format: 1, sigmoe: '0', platform: process.platform, arch: process.arch, node: '*', models: [], files };
  }

  test('random bytes in place of any block end in an error or in the same bundle, never in anything else', async () => {
    const archive = await archiveOf([good, { path: 'sigmoe-bundle/models/a/config.json', content: '{}'.repeat(700) }]);
    const bytes = readFileSync(archive);
    for (let round = 0; round < 200; round++) {
      const copy = Buffer.from(bytes);
      const at = Math.floor(Math.random() * copy.length);
      randomBytes(1 + (round % 40)).copy(copy, at);
      writeFileSync(archive, copy);
      await readBundle(archive, {}).then(
        ({ manifest }) => expect(manifest.files).toHaveLength(2),
        (error: unknown) => expect(error).toMatchObject({ code: expect.stringMatching(/^ERR_(BAD_CHECKPOINT|IO)$/) }),
      );
    }
  });

  test('a compressed archive is not unpacked to be looked at', async () => {
    const { gzipSync } = await import('node:zlib');
    const path = join(folderWith({}), 'bomb.tar.gz');
    writeFileSync(path, gzipSync(Buffer.alloc(1 << 20)));
    await expect(readBundle(path, {})).rejects.toThrow('it is no plain tar archive');
  });
});

test('packages are laid out so that each finds the version it was installed with', () => {
  const root = folderWith({});
  const add = (path: string, version: string, dependencies: Record<string, string> = {}) => {
    const folder = join(root, path);
    mkdirSync(folder, { recursive: true });
    const name = path.split('node_modules/').at(-1) || 'app';
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name, version, dependencies }));
  };
  add('', '1', { a: '1', b: '1' });
  add('node_modules/a', '1', { c: '2' });
  add('node_modules/a/node_modules/c', '2', { b: '1' });
  add('node_modules/b', '1', { c: '1', '@s/d': '1' });
  add('node_modules/c', '1', { a: '1' });
  add('node_modules/@s/d', '1', {});
  add('node_modules/unused', '1');
  const layout = Object.fromEntries(closureOf(root, ['absent'], []).map(({ path, version }) => [path, version]));
  const versions = new Set(Object.entries(layout).map(([path, version]) => `${path.split('node_modules/').at(-1)}@${version}`));
  expect(versions).toEqual(new Set(['app@1', 'a@1', 'b@1', 'c@1', 'c@2', '@s/d@1']));
  const find = (from: string, name: string): string | undefined => {
    for (let at = from; at.includes('node_modules'); at = at.slice(0, Math.max(0, at.lastIndexOf('/node_modules/')))) {
      const there = layout[`${at}/node_modules/${name}`];
      if (there !== undefined) return there;
    }
    return layout[`node_modules/${name}`];
  };
  expect(find('node_modules/a', 'c')).toBe('2');
  expect(find('node_modules/b', 'c')).toBe('1');
  add('node_modules/b', '1', { gone: '1' });
  expect(() => closureOf(root, [], [])).toThrow('b needs gone, which is not installed');
});
