/** A hub that does everything wrong. Whatever it does, the cache holds nothing but what was listed. */
import { existsSync, mkdirSync, readdirSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { DownloadError, EngineError, NotFoundError } from '../../lib/index.js';
import { COMMIT, end, type FakeHub, type Fault, gitSha1 as gitOf, sha256 as sha256Of } from './fake_hub.js';
import { briskPull, expectSame, ID, startHub } from './setup.js';

const SHARD = 'model-00001-of-00002.safetensors';
const OTHER = 'model-00002-of-00002.safetensors';

/** The file is named once in a fault: two names of one content would be one download. */
async function start(): Promise<{ hub: FakeHub; blobs: string; entry: string }> {
  const { hub, caches } = await startHub();
  delete hub.files['copy.bin'];
  const entry = join(caches.huggingface, 'models--owner--model-1.5');
  return { hub, entry, blobs: join(entry, 'blobs') };
}

/** Applies to the first `times` requests for a file. */
function first(times: number, path: string, fault: Fault): Fault {
  return (file, response, request) => (file.path === path && file.count < times ? fault(file, response, request) : false);
}

async function failure(pulled: Promise<unknown>): Promise<EngineError> {
  const error = await pulled.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(EngineError);
  return error as EngineError;
}

describe('what passes is tried again', () => {
  test.each([
    ['a cut connection', 3],
    ['a connection that is cut before its answer', 3],
  ])('%s', async (what, times) => {
    const { hub } = await start();
    hub.fault = first(times, SHARD, async ({ content, begin, end: stop }, response) => {
      if (what.includes('before')) {
        response.destroy();
        return true;
      }
      response.writeHead(206, {
        'content-length': stop - begin,
        'content-range': `bytes ${begin}-${stop - 1}/${content.length}`,
      });
      response.write(content.subarray(begin, begin + 1000));
      await sleep(5);
      response.destroy();
      return true;
    });
    expectSame((await briskPull()).path, hub.files);
    if (what === 'a cut connection') {
      // It goes on where it was cut, not from the begin of the range.
      const begins = hub.requestsOf(SHARD).map(({ headers }) => Number(/\d+/.exec(headers.range ?? '')));
      expect(begins.filter((begin) => begin % 65_536 === 1000)).toHaveLength(3);
    }
  });

  test.each([500, 502, 503, 504, 408, 429])('status %d', async (status) => {
    const { hub } = await start();
    hub.listFault = (response, count) => {
      if (count === 0) end(response, status);
      return count === 0;
    };
    hub.fault = first(2, SHARD, (_, response) => {
      end(response, status);
      return true;
    });
    expectSame((await briskPull()).path, hub.files);
  });

  test('429 waits as long as Retry-After says, and tells', async () => {
    const { hub } = await start();
    hub.listFault = (response, count) => {
      if (count === 0) end(response, 429, { 'retry-after': '1' });
      return count === 0;
    };
    const began = performance.now();
    await briskPull();
    expect(performance.now() - began).toBeGreaterThan(990);
    hub.listFault = (response) => {
      end(response, 429, { 'retry-after': '3600' });
      return true;
    };
    expect(await failure(briskPull())).toMatchObject({ code: 'ERR_DOWNLOAD', message: expect.stringContaining('answers 429') });
  });

  test('a store that refuses a signature is asked again by way of the hub', async () => {
    const { hub } = await start();
    hub.fault = first(1, SHARD, (_, response) => {
      end(response, 403);
      return true;
    });
    expectSame((await briskPull()).path, hub.files);
  });

  test('a server without ranges sends the whole, also when it is cut', async () => {
    const { hub } = await start();
    let sent = 0;
    hub.fault = async ({ path, content }, response) => {
      if (path !== SHARD) return false;
      response.writeHead(200, { 'content-length': content.length });
      // The fifth request is the first for the whole; it is cut once.
      const cut = sent++ === 5;
      response.write(cut ? content.subarray(0, 100_000) : content);
      await sleep(5);
      if (cut) response.destroy();
      else response.end();
      return true;
    };
    expectSame((await briskPull()).path, hub.files);
  });
});

describe('what does not pass ends the pull', () => {
  test.each([
    ['shorter than listed', (content: Buffer) => content.subarray(0, 1000), 'wrong length: 131072 bytes are listed, 1000'],
    [
      'longer than listed',
      (content: Buffer) => Buffer.concat([content, content]),
      'wrong length: 131072 bytes are listed, 262144',
    ],
  ])('a file %s', async (_, change, message) => {
    const { hub, blobs, entry } = await start();
    hub.fault = ({ path, content, begin, end: stop }, response) => {
      if (path !== OTHER) return false;
      const body = change(content);
      const part = body.subarray(begin, Math.min(stop, body.length));
      response.writeHead(206, { 'content-range': `bytes ${begin}-${stop - 1}/${body.length}` });
      response.end(part);
      return true;
    };
    expect(await failure(briskPull())).toMatchObject({ code: 'ERR_DOWNLOAD', message: expect.stringContaining(message) });
    nothingOf(hub, OTHER, blobs, entry);
    hub.fault = () => false;
    expectSame((await briskPull()).path, hub.files);
  });

  test('more bytes than the header said', async () => {
    const { hub, blobs, entry } = await start();
    hub.fault = ({ path, content }, response) => {
      if (path !== 'config.json') return false;
      response.writeHead(200);
      response.end(Buffer.concat([content, content]));
      return true;
    };
    expect((await failure(briskPull())).message).toContain('wrong length: 29 bytes are listed, more than 29');
    nothingOf(hub, 'config.json', blobs, entry);
  });

  test.each([SHARD, 'config.json'])('a wrong hash of %s: nothing of it is kept', async (path) => {
    const { hub, blobs, entry } = await start();
    hub.fault = async ({ path: asked, content, begin, end: stop }, response, request) => {
      if (asked !== path) return false;
      const wrong = Buffer.from(content);
      wrong[7] = (wrong[7] ?? 0) ^ 1;
      const range =
        request.headers.range === undefined ? {} : { 'content-range': `bytes ${begin}-${stop - 1}/${content.length}` };
      response.writeHead(request.headers.range === undefined ? 200 : 206, { 'content-length': stop - begin, ...range });
      response.end(wrong.subarray(begin, stop));
      return true;
    };
    const error = await failure(briskPull());
    expect(error.message).toMatch(new RegExp(`${path}: wrong hash: (sha256|git-sha1) [0-9a-f]+ is listed, [0-9a-f]+ arrived`));
    nothingOf(hub, path, blobs, entry);
    expect(readdirSync(blobs).filter((name) => name.includes('incomplete') && name.startsWith(listedHash(hub, path)))).toEqual(
      [],
    );
    hub.fault = () => false;
    expectSame((await briskPull()).path, hub.files);
  });

  test('bytes that an earlier pull left wrong are fetched again', async () => {
    const { hub, blobs } = await start();
    const name = listedHash(hub, OTHER);
    hub.listFault = (response) => {
      end(response, 404);
      return true;
    };
    await failure(briskPull());
    hub.listFault = () => false;
    writeFileSync(join(blobs, `${name}.sigmoe.incomplete`), Buffer.alloc(131_072));
    const ranges = [{ begin: 0, end: 131_072, done: 100_000 }];
    // Of another owner, so old that it is nobody's.
    const journal = { version: 1, size: 131_072, owner: 'elsewhere', ranges };
    writeFileSync(join(blobs, `${name}.sigmoe.json`), JSON.stringify(journal));
    utimesSync(join(blobs, `${name}.sigmoe.json`), 1, 1);
    expectSame((await briskPull()).path, hub.files);
    expect(hub.requestsOf(OTHER).map(({ headers }) => headers.range)).toContain('bytes=100000-131071');
  });

  test.each(['not JSON', '{"version": 1, "size": 131072, "ranges": [{"begin": 0, "end": 9e15, "done": 1}]}', '[]'])(
    'a journal that makes no sense is dropped: %s',
    async (text) => {
      const { hub, blobs } = await start();
      await failure(briskPull({ include: ['nothing'] }));
      writeFileSync(join(blobs, `${listedHash(hub, OTHER)}.sigmoe.incomplete`), Buffer.alloc(200_000));
      writeFileSync(join(blobs, `${listedHash(hub, OTHER)}.sigmoe.json`), text);
      expectSame((await briskPull()).path, hub.files);
    },
  );

  test.each([
    [401, '', undefined, 'does not exist, is private, or is gated (401)', 'set HF_TOKEN'],
    [403, 'GatedRepo', undefined, 'it is gated (403)', 'accept the terms at'],
    [403, 'GatedRepo', 'hf_secret', 'it is gated (403)', 'the token of HF_TOKEN is not enough'],
    [404, 'RepoNotFound', undefined, 'there is no such model or revision (404)', 'see http'],
    [404, 'RevisionNotFound', undefined, 'there is no revision main', 'see http'],
    [418, '', undefined, 'the server answered 418', 'see http'],
  ])('a list refused with %d %s (token: %s)', async (status, reason, token, message, hint) => {
    const { hub } = await start();
    if (token !== undefined) process.env.HF_TOKEN = token;
    hub.listFault = (response) => {
      end(response, status, { 'x-error-code': reason }, 'token hf_secret is bad');
      return true;
    };
    const error = await failure(briskPull());
    expect(error).toBeInstanceOf(status === 404 ? NotFoundError : DownloadError);
    expect(error.message).toContain(message);
    expect(error.hint).toContain(hint);
    expect(`${error.stack}${error.hint}`).not.toContain('hf_secret');
    expect(hub.seen).toHaveLength(1);
  });

  test('a gated file, of which the list is open', async () => {
    const { hub } = await start();
    hub.fault = ({ path }, response) => {
      if (path === 'config.json') end(response, 403, { 'x-error-code': 'GatedRepo' });
      return path === 'config.json';
    };
    expect((await failure(briskPull())).message).toContain('it is gated (403)');
  });

  test('a hub that is not there', async () => {
    await start();
    process.env.HF_ENDPOINT = 'http://127.0.0.1:1';
    expect(await failure(briskPull())).toMatchObject({
      code: 'ERR_DOWNLOAD',
      message: `${ID} from http://127.0.0.1:1: http://127.0.0.1:1: the connection was refused`,
    });
  });

  test('a page instead of a list', async () => {
    const { hub } = await start();
    hub.listFault = (response) => {
      end(response, 200, { 'content-type': 'text/html' }, '<html>Please log in</html>');
      return true;
    };
    expect((await failure(briskPull())).message).toContain('the answer is not JSON');
  });

  test('a server that says nothing more', async () => {
    const { hub } = await start();
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '0.2';
    hub.fault = ({ path, content, begin, end: stop }, response) => {
      if (path !== OTHER) return false;
      response.writeHead(206, { 'content-range': `bytes ${begin}-${stop - 1}/${content.length}` });
      response.write(Buffer.alloc(1));
      return true;
    };
    expect((await failure(briskPull())).message).toMatch(/nothing more arrived in time|no answer in time/);
  });
});

describe('what a server must not be given or allowed', () => {
  test('the token goes to the hub and not where it redirects', async () => {
    const { hub } = await start();
    process.env.HF_TOKEN = 'hf_secret';
    await briskPull();
    const sentTo = (host: string) =>
      new Set(hub.seen.filter((seen) => seen.host === host).map((seen) => seen.headers.authorization));
    expect(sentTo('hub')).toEqual(new Set(['Bearer hf_secret']));
    expect(sentTo('store')).toEqual(new Set([undefined]));
    process.env.MODELSCOPE_API_TOKEN = 'ms-secret';
    hub.seen.length = 0;
    await briskPull({ source: 'modelscope' });
    expect(sentTo('hub')).toEqual(new Set(['Bearer ms-secret']));
    expect(hub.seen.filter(({ host, headers }) => host === 'store' && headers.cookie !== undefined)).toEqual([]);
  });

  test('the token may come from a file; one with a line break in it makes no header of its own', async () => {
    const { hub } = await start();
    mkdirSync(process.env.HF_HOME ?? '', { recursive: true });
    writeFileSync(join(process.env.HF_HOME ?? '', 'token'), 'hf_file\n');
    await briskPull({ include: ['config.json'] });
    expect(hub.seen[0]?.headers.authorization).toBe('Bearer hf_file');
    hub.seen.length = 0;
    process.env.HF_TOKEN = 'hf_a b\r\nx-evil: 1';
    process.env.HF_TOKEN_PATH = '/dev/null';
    await briskPull({ include: ['config.json'] });
    expect(hub.seen[0]?.headers).not.toHaveProperty('x-evil');
    expect(hub.seen[0]?.headers.authorization).toBeUndefined();
  });

  test.each([
    '../../../evil',
    '/etc/evil',
    'a/../../evil',
    'a//b',
    './a',
    'a\\b',
    'a\0b',
    'a\nb',
    '..',
    '',
    'x'.repeat(300),
    `${'y/'.repeat(600)}z`,
  ])('a file called %.40j', async (name) => {
    const { hub, entry } = await start();
    hub.files = { ...hub.files, [name]: Buffer.from('evil') };
    const error = await failure(briskPull());
    expect(error.message).toContain('a file name');
    expect(hub.seen).toHaveLength(1);
    expect(readdirSync(join(entry, 'blobs'))).toEqual([]);
    expect(existsSync(join(entry, 'trees'))).toBe(false);
  });

  const good = { rfilename: 'a', size: 1, blobId: 'a'.repeat(40) };
  test.each([
    ['a file as a folder', { sha: COMMIT, siblings: [good, { ...good, rfilename: 'a/b' }] }, 'both a file and a folder'],
    ['the same name twice', { sha: COMMIT, siblings: [good, good] }, 'is there twice'],
    ['a commit that climbs', { sha: '../../evil', siblings: [good] }, 'names no commit'],
    ['no commit', { siblings: [good] }, 'names no commit'],
    ['a hash that climbs', { sha: COMMIT, siblings: [{ ...good, blobId: '../../../../../../evil' }] }, 'without a hash'],
    ['no hash', { sha: COMMIT, siblings: [{ rfilename: 'a', size: 1 }] }, 'without a hash'],
    ['no length', { sha: COMMIT, siblings: [{ ...good, size: undefined }] }, 'no length is listed'],
    ['a negative length', { sha: COMMIT, siblings: [{ ...good, size: -1 }] }, 'no length is listed'],
    ['a length past all disks', { sha: COMMIT, siblings: [{ ...good, size: 2 ** 52 }] }, 'bytes are still to be downloaded'],
    ['no files', { sha: COMMIT, siblings: [] }, 'there are no files'],
    ['a list of something else', { sha: COMMIT, siblings: [null, 3] }, 'a file name'],
    ['an array', [], 'names no commit'],
    ['null', null, 'names no commit'],
  ])('a list with %s', async (_, list, message) => {
    const { hub } = await start();
    hub.listFault = (response) => {
      end(response, 200, {}, JSON.stringify(list));
      return true;
    };
    expect((await failure(briskPull())).message).toContain(message);
  });

  test.each([
    ['ftp://127.0.0.1/x', 'redirects to ftp:'],
    ['file:///etc/passwd', 'redirects to file:'],
    ['http://[', 'redirects to no address'],
  ])('a redirect to %s', async (location, message) => {
    const { hub } = await start();
    hub.listFault = (response) => {
      end(response, 302, { location });
      return true;
    };
    expect((await failure(briskPull())).message).toContain(message);
  });

  test('a circle of redirects', async () => {
    const { hub } = await start();
    hub.listFault = (response) => {
      end(response, 302, { location: `/api/models/${ID}/revision/main` });
      return true;
    };
    expect((await failure(briskPull())).message).toContain('redirects more than 5 times');
  });

  test('an id, a revision or an option that is none', async () => {
    const { hub } = await start();
    for (const id of ['model', 'a/b/c', '../b', 'a/..', 'a--b/c', '/a/b', 'a/b@../../x', 'a/b@', `${'a'.repeat(99)}/b`, '']) {
      await expect(briskPull({}, id), id).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    }
    await expect(briskPull({ revision: '../x' })).rejects.toThrow('expected a branch, a tag or a commit');
    await expect(briskPull({ revision: 'v1' }, `${ID}@v2`)).rejects.toThrow('where the id asks for v2');
    await expect(briskPull({ maxWorkers: 0 })).rejects.toThrow('maxWorkers');
    await expect(briskPull({ source: 'elsewhere' as 'huggingface' })).rejects.toThrow(
      'expected one of huggingface, modelscope',
    );
    await expect(briskPull({ revison: 'x' } as object)).rejects.toMatchObject({ hint: 'did you mean revision?' });
    process.env.HF_ENDPOINT = 'http://user:password@hub';
    const error = await failure(briskPull());
    expect(error.message).toContain('HF_ENDPOINT: expected an address');
    expect(error.message).not.toContain('password');
    expect(hub.seen).toEqual([]);
  });
});

function listedHash(hub: FakeHub, path: string): string {
  const content = hub.files[path] ?? Buffer.alloc(0);
  return content.length >= 4096 ? sha256Of(content) : gitOf(content);
}

/** The file has no name in the cache, and no revision points to a snapshot without it. */
function nothingOf(hub: FakeHub, path: string, blobs: string, entry: string): void {
  expect(existsSync(join(blobs, listedHash(hub, path)))).toBe(false);
  expect(existsSync(join(entry, 'snapshots', COMMIT))).toBe(false);
  expect(existsSync(join(entry, 'refs'))).toBe(false);
}
