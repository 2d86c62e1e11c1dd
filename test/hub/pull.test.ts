/** Downloads that go well: what arrives, what is asked for, where it lies. */
import { randomBytes } from 'node:crypto';
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { PullProgress } from '../../lib/hub/index.js';
import { AbortError } from '../../lib/index.js';
import { COMMIT, gitSha1, sha256 } from './fake_hub.js';
import { briskPull, expectSame, ID, someFiles, startHub } from './setup.js';

describe('from Hugging Face', () => {
  test('every file arrives, in the layout of the Python library', async () => {
    const { hub, caches } = await startHub();
    const result = await briskPull();
    const entry = join(caches.huggingface, 'models--owner--model-1.5');
    expect(result).toEqual({
      id: ID,
      source: 'huggingface',
      revision: 'main',
      commit: COMMIT,
      path: join(entry, 'snapshots', COMMIT),
      files: 7,
      bytes: Object.values(hub.files).reduce((sum, { length }) => sum + length, 0),
      downloadedBytes: hub.sentBytes,
    });
    expectSame(result.path, hub.files);
    expect(readFileSync(join(entry, 'refs/main'), 'utf8')).toBe(COMMIT);
    // Small files are named by git's hash of them, large ones by SHA-256; names are relative links to them.
    const shard = 'model-00001-of-00002.safetensors';
    expect(readlinkSync(join(result.path, shard))).toBe(`../../blobs/${sha256(hub.files[shard] ?? Buffer.alloc(0))}`);
    const figure = 'figures/one more/über.png';
    expect(readlinkSync(join(result.path, figure))).toBe(`../../../../blobs/${sha256(hub.files[figure] ?? Buffer.alloc(0))}`);
    const config = hub.files['config.json'] ?? Buffer.alloc(0);
    expect(readlinkSync(join(result.path, 'config.json'))).toBe(`../../blobs/${gitSha1(config)}`);
    const tree = JSON.parse(readFileSync(join(entry, 'trees', `${COMMIT}.json`), 'utf8'));
    expect(tree.files['config.json']).toEqual({ size: config.length, blob_id: gitSha1(config) });
    // Nothing of the work is left: six contents, of which two names share one.
    expect(readdirSync(join(entry, 'blobs'))).toHaveLength(6);
    expect(readdirSync(entry).sort()).toEqual(['blobs', 'refs', 'snapshots', 'trees']);
  });

  test('large files come in ranges, several at a time, and the same content comes once', async () => {
    const { hub } = await startHub();
    await briskPull();
    const shard = 'model-00001-of-00002.safetensors';
    const asked = [...hub.requestsOf(shard), ...hub.requestsOf('copy.bin')].map(({ headers }) => headers.range);
    expect(asked.sort()).toEqual([
      'bytes=0-65535',
      'bytes=131072-196607',
      'bytes=196608-262143',
      'bytes=262144-300000',
      'bytes=65536-131071',
    ]);
    expect(hub.requestsOf('config.json').map(({ headers }) => headers.range)).toEqual([undefined]);
  });

  test('a second pull asks for the list and nothing else', async () => {
    const { hub } = await startHub();
    await briskPull();
    hub.seen.length = 0;
    expect(await briskPull()).toMatchObject({ downloadedBytes: 0, files: 7 });
    expect(hub.seen.map(({ url }) => url)).toEqual([`/api/models/${ID}/revision/main?blobs=true`]);
  });

  test('a new commit brings what changed; the old one stays what it was', async () => {
    const { hub } = await startHub();
    const before = hub.files;
    const first = await briskPull();
    hub.commit = 'f'.repeat(40);
    hub.files = { ...before, 'config.json': Buffer.from('{"new": true}') };
    const second = await briskPull({ revision: 'main' });
    expect(second).toMatchObject({ commit: 'f'.repeat(40), downloadedBytes: 13 });
    expectSame(first.path, before);
    expectSame(second.path, hub.files);
  });

  test('a commit or a tag may be asked for', async () => {
    const { hub, caches } = await startHub();
    const pinned = await briskPull({ revision: COMMIT });
    expect(pinned.commit).toBe(COMMIT);
    expect(existsSync(join(caches.huggingface, 'models--owner--model-1.5/refs'))).toBe(false);
    expect(await briskPull({}, `${ID}@refs/pr/1`)).toMatchObject({ revision: 'refs/pr/1', downloadedBytes: 0 });
    expect(readFileSync(join(caches.huggingface, 'models--owner--model-1.5/refs/refs/pr/1'), 'utf8')).toBe(COMMIT);
    expect(hub.seen.at(-1)?.url).toBe(`/api/models/${ID}/revision/refs%2Fpr%2F1?blobs=true`);
  });

  test('include and exclude choose files', async () => {
    const { hub } = await startHub();
    const { path } = await briskPull({ include: ['*.json', '*.safetensors'], exclude: ['*-00002-of-*'] });
    expectSame(path, {
      'config.json': hub.files['config.json'] ?? Buffer.alloc(0),
      'tokenizer.json': hub.files['tokenizer.json'] ?? Buffer.alloc(0),
      'model-00001-of-00002.safetensors': hub.files['model-00001-of-00002.safetensors'] ?? Buffer.alloc(0),
    });
    await expect(briskPull({ include: ['*.gguf'] })).rejects.toThrow('include and exclude leave none of 7 files');
  });
});

describe('from ModelScope', () => {
  test('every file arrives, and the revision is a link to what it was', async () => {
    const { hub, caches } = await startHub();
    const first = await briskPull({ source: 'modelscope' });
    const entry = join(caches.modelscope, 'models/owner--model-1.5');
    expect(first).toMatchObject({ revision: 'master', path: join(entry, 'snapshots', first.commit) });
    expectSame(join(entry, 'snapshots/master'), hub.files);
    const before = hub.files;
    hub.files = { ...before, 'config.json': Buffer.from('{"new": true}') };
    const second = await briskPull({ source: 'modelscope' });
    expect(second.downloadedBytes).toBe(13);
    expect(second.commit).not.toBe(first.commit);
    expectSame(first.path, before);
    expectSame(join(entry, 'snapshots/master'), hub.files);
  });

  test('a folder that its Python library made becomes ours file by file', async () => {
    const { hub, caches } = await startHub();
    const folder = join(caches.modelscope, 'models/owner--model-1.5/snapshots/master');
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'config.json'), '{"old": true}');
    await briskPull({ source: 'modelscope' });
    expect(lstatSync(folder).isDirectory()).toBe(true);
    expectSame(folder, hub.files);
  });

  test('a range with status 200 is taken as one', async () => {
    const { hub } = await startHub();
    hub.fault = async ({ content, begin, end }, response, request) => {
      if (request.headers.range === undefined) return false;
      response.writeHead(200, { 'content-length': end - begin });
      await hub.send(response, content.subarray(begin, end));
      response.end();
      return true;
    };
    expectSame((await briskPull({ source: 'modelscope' })).path, hub.files);
    expect(hub.sentBytes).toBe(Object.values(hub.files).reduce((sum, { length }) => sum + length, 0) - 300_001);
  });
});

describe('on the way', () => {
  test('progress grows to the whole, and names the files under way', async () => {
    const { hub } = await startHub();
    hub.pace = 2_000_000;
    const seen: PullProgress[] = [];
    await briskPull({ onProgress: (progress) => seen.push(progress) });
    const last = seen.at(-1);
    expect(last).toMatchObject({ filesDone: 6, filesTotal: 6, active: [] });
    expect(last?.bytesDone).toBe(last?.bytesTotal);
    expect(seen.map(({ bytesDone }) => bytesDone)).toEqual(seen.map(({ bytesDone }) => bytesDone).sort((a, b) => a - b));
    expect(seen.flatMap(({ active }) => active).map(({ path }) => path)).toContain('model-00001-of-00002.safetensors');
  });

  test('a signal ends it, and the next pull fetches only the rest', async () => {
    const { hub } = await startHub();
    hub.pace = 500_000;
    const controller = new AbortController();
    const onProgress = ({ bytesDone }: PullProgress) => {
      if (bytesDone > 150_000) controller.abort(new Error('mine'));
    };
    const aborted = briskPull({ signal: controller.signal, onProgress });
    await expect(aborted).rejects.toBeInstanceOf(AbortError);
    await expect(aborted).rejects.toMatchObject({ cause: new Error('mine') });
    hub.pace = 0;
    const { path, downloadedBytes } = await briskPull();
    expectSame(path, hub.files);
    const whole = Object.values(someFiles()).reduce((sum, { length }) => sum + length, 0) - 300_001;
    expect(downloadedBytes).toBeLessThan(whole - 140_000);
  });

  test('an aborted signal makes no request; an exception of onProgress ends the pull', async () => {
    const { hub } = await startHub();
    await expect(briskPull({ signal: AbortSignal.abort() })).rejects.toBeInstanceOf(AbortError);
    expect(hub.seen).toEqual([]);
    const onProgress = () => {
      throw new RangeError('mine');
    };
    await expect(briskPull({ onProgress })).rejects.toThrow(new RangeError('mine'));
  });

  test('many requests at once are no reason for a warning', async () => {
    const files = { 'model.safetensors': randomBytes(3_000_000) };
    await startHub(files);
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => warnings.push(warning);
    process.on('warning', onWarning);
    expectSame((await briskPull({ maxWorkers: 64 })).path, files);
    await new Promise(setImmediate);
    process.off('warning', onWarning);
    expect(warnings).toEqual([]);
  });

  test('a blob of another length is fetched again', async () => {
    const { hub, caches } = await startHub();
    const { path } = await briskPull();
    const name = gitSha1(hub.files['config.json'] ?? Buffer.alloc(0));
    writeFileSync(join(caches.huggingface, 'models--owner--model-1.5/blobs', name), 'cut');
    await briskPull();
    expectSame(path, hub.files);
  });

  test('two at once on one model: each content is sent once', async () => {
    const { hub } = await startHub();
    hub.pace = 3_000_000;
    const notes: string[] = [];
    const results = await Promise.all([briskPull(), briskPull({ onNote: (line) => notes.push(line) })]);
    for (const { path } of results) expectSame(path, hub.files);
    expect(hub.sentBytes).toBe(Object.values(hub.files).reduce((sum, { length }) => sum + length, 0) - 300_001);
    expect(results.map(({ downloadedBytes }) => downloadedBytes)).toContain(0);
  });

  test('parts that another container writes are waited for; abandoned ones are taken over', async () => {
    const { hub, caches } = await startHub();
    const name = sha256(hub.files['copy.bin'] ?? Buffer.alloc(0));
    const blobs = join(caches.huggingface, 'models--owner--model-1.5/blobs');
    mkdirSync(blobs, { recursive: true });
    const ranges = [{ begin: 0, end: 300_001, done: 0 }];
    const journal = join(blobs, `${name}.sigmoe.json`);
    writeFileSync(join(blobs, `${name}.sigmoe.incomplete`), '');
    writeFileSync(journal, JSON.stringify({ version: 1, size: 300_001, owner: 'elsewhere', ranges }));
    const pulled = briskPull({
      onNote: (line) => {
        if (!line.includes('container')) return;
        // It finishes.
        writeFileSync(join(blobs, `${name}.done`), hub.files['copy.bin'] ?? '');
        renameSync(join(blobs, `${name}.done`), join(blobs, name));
        renameSync(journal, join(blobs, 'gone'));
      },
    });
    expectSame((await pulled).path, hub.files);
    expect(hub.requestsOf('copy.bin')).toEqual([]);
    expect(hub.requestsOf('model-00001-of-00002.safetensors')).toEqual([]);
  });
});
