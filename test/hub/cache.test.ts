/** Models named by their ids: found in the caches that the Python libraries fill, and downloaded only when that is asked. */
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { inspect, Model, pull, resolveModel, Tokenizer } from '../../lib/index.js';
import { sigmoe } from '../cli/run.js';
import { nano, root } from '../helpers/files.js';
import { COMMIT, gitSha1, sha256 } from './fake_hub.js';
import { ID, nanoFiles, startHub } from './setup.js';

const greedy = { prompt: 'Fever is', temperature: 0, maxTokens: 5 } as const;

/** The bundled model as a cache entry of Hugging Face's library, without what only sigmoe would write. */
function asPythonMakesIt(cache: string, id = ID): string {
  const entry = join(cache, `models--${id.replace('/', '--')}`);
  for (const folder of ['blobs', 'refs', `snapshots/${COMMIT}`]) mkdirSync(join(entry, folder), { recursive: true });
  writeFileSync(join(entry, 'refs/main'), COMMIT);
  for (const [name, content] of Object.entries(nanoFiles())) {
    const etag = name.endsWith('.safetensors') ? sha256(content) : gitSha1(content);
    writeFileSync(join(entry, 'blobs', etag), content);
    symlinkSync(`../../blobs/${etag}`, join(entry, 'snapshots', COMMIT, name));
  }
  return join(entry, 'snapshots', COMMIT);
}

describe('out of the cache', () => {
  test('of Hugging Face: Model, Tokenizer, inspect, with and without a revision', async () => {
    const { hub, caches } = await startHub();
    const folder = asPythonMakesIt(caches.huggingface);
    await using model = await Model.load(ID, { threads: 1 });
    expect(model.info.path).toBe(folder);
    await using same = await Model.load(nano, { threads: 1 });
    expect((await model.generate(greedy).result).tokens).toEqual((await same.generate(greedy).result).tokens);
    expect((await Tokenizer.load(ID)).encode('fever')).toEqual((await Tokenizer.load(nano)).encode('fever'));
    for (const options of [{}, { revision: 'main' }, { revision: COMMIT }, { download: true }]) {
      expect((await inspect(ID, options)).path).toBe(folder);
    }
    expect(await resolveModel(`${ID}@${COMMIT}`)).toBe(folder);
    expect(hub.seen).toEqual([]);
  });

  test.each([
    ['its present library', 'models/owner--model-1.5/snapshots/master'],
    ['its older library', 'models/owner/model-1___5'],
    ['its older library by default', 'hub/models/owner/model-1___5'],
    ['its oldest library', 'hub/owner/model-1___5'],
  ])('of ModelScope, as %s makes it', async (_, place) => {
    const { hub, caches } = await startHub();
    const folder = join(caches.modelscope, place);
    cpSync(nano, folder, { recursive: true });
    expect(await resolveModel(ID)).toBe(folder);
    expect(await resolveModel(ID, { source: 'modelscope' })).toBe(folder);
    await expect(resolveModel(ID, { source: 'huggingface' })).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' });
    expect(hub.seen).toEqual([]);
  });

  test('a folder of that name goes before the cache', async () => {
    const { caches } = await startHub();
    asPythonMakesIt(caches.huggingface, 'models/nano');
    expect(process.cwd()).toBe(root.replace(/\/$/, ''));
    expect(await resolveModel('models/nano')).toBe('models/nano');
    await expect(resolveModel('models/nano', { revision: 'main' })).rejects.toThrow('models/nano is a folder');
  });

  test('what is not there, or not whole, is told with what to do; nothing is asked', async () => {
    const { hub, caches } = await startHub();
    const hint = `sigmoe pull ${ID} downloads it, as does download: true (--download)`;
    const nothing = Model.load(ID);
    await expect(nothing).rejects.toMatchObject({ code: 'ERR_NOT_FOUND', hint });
    await expect(nothing).rejects.toThrow(`${ID}: no such folder, and revision main or master of it is not in the cache`);
    const folder = asPythonMakesIt(caches.huggingface);
    await expect(Model.load(`${ID}@v2`)).rejects.toThrow(`of ${ID} there is main, ${COMMIT}`);
    rmSync(join(folder, 'model-00002-of-00002.safetensors'));
    const partial = Model.load(ID);
    await expect(partial).rejects.toMatchObject({ code: 'ERR_NOT_FOUND', hint });
    await expect(partial).rejects.toThrow(`model-00002-of-00002.safetensors missing in ${folder}`);
    // A link to a content that is gone is no file.
    rmSync(join(caches.huggingface, 'models--owner--model-1.5/blobs'), { recursive: true });
    await expect(Model.load(ID)).rejects.toThrow('config.json missing in');
    expect(hub.seen).toEqual([]);
  });

  test('a draft may be named by its id', async () => {
    const { hub } = await startHub();
    await expect(Model.load(nano, { draft: 'owner/draft' })).rejects.toThrow('owner/draft: no such folder');
    expect(hub.seen).toEqual([]);
  });

  test.each([{ revision: 3 }, { source: 'elsewhere' }, { download: 'yes' }])('Model.load refuses %j', async (options) => {
    await startHub();
    await expect(Model.load(ID, options as object)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });
});

describe('download: true', () => {
  test.each(['huggingface', 'modelscope'] as const)('brings a model of %s once and loads it', async (source) => {
    const { hub } = await startHub(nanoFiles());
    const stages: (string | undefined)[] = [];
    const onProgress = ({ stage }: { stage?: string }) => stages.push(stage);
    await using model = await Model.load(ID, { download: true, source, threads: 1, onProgress });
    expect((await model.generate(greedy).result).tokens).toHaveLength(5);
    expect(stages[0]).toBe('download');
    expect(stages.at(-1)).toBeUndefined();
    hub.seen.length = 0;
    await using again = await Model.load(ID, { download: true, source, threads: 1 });
    expect(again.info.path).toBe(model.info.path);
    expect(hub.seen).toEqual([]);
  });

  test('an abort while it downloads ends the load', async () => {
    const { hub } = await startHub(nanoFiles());
    hub.pace = 1_000_000;
    const controller = new AbortController();
    const loading = Model.load(ID, { download: true, signal: controller.signal, onProgress: () => controller.abort() });
    await expect(loading).rejects.toMatchObject({ name: 'AbortError' });
  });

  test.each(['HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'])('%s forbids it', async (name) => {
    const { hub } = await startHub(nanoFiles());
    process.env[name] = '1';
    await expect(Model.load(ID, { download: true })).rejects.toThrow(`no connection is made: ${name} is set`);
    await expect(pull(ID)).rejects.toThrow(`no connection is made: ${name} is set`);
    expect(hub.seen).toEqual([]);
  });
});

describe('the command line', () => {
  test('pull prints the folder, and says on stderr what it is; every command takes the id', async () => {
    await startHub(nanoFiles());
    const first = await sigmoe(['pull', ID]);
    expect(first.status).toBe(0);
    expect(first.stderr).toMatch(
      new RegExp(`^owner/model-1.5 at main, commit ${COMMIT}: \\d+ files of 20.\\d MB, 20.\\d MB downloaded\\n$`),
    );
    const folder = first.stdout.trim();
    expect(JSON.parse((await sigmoe(['pull', ID, '--offline', '--json'])).stdout)).toEqual({
      ...{ id: ID, source: 'huggingface', revision: 'main', commit: COMMIT, path: folder, downloadedBytes: 0 },
      ...{
        files: Object.keys(nanoFiles()).length,
        bytes: Object.values(nanoFiles()).reduce((sum, { length }) => sum + length, 0),
      },
    });
    const answer = await sigmoe(['generate', ID, 'What is asthma?', '--max-tokens', '5', '--temperature', '0']);
    expect(answer).toMatchObject({ status: 0, stdout: expect.stringMatching(/\w+/) });
    // The notice that the model carries is shown for an id too.
    expect(answer.stderr).toContain('never medical advice');
    expect(JSON.parse((await sigmoe(['inspect', ID, '--json'])).stdout).path).toBe(folder);
  });

  test('a failure is one line; the token is nowhere in it', async () => {
    const { hub } = await startHub(nanoFiles());
    process.env.HF_TOKEN = 'hf_secret';
    hub.listFault = (response) => {
      response.writeHead(403, { 'x-error-code': 'GatedRepo' }).end();
      return true;
    };
    const gated = await sigmoe(['pull', ID, '--verbose']);
    expect(gated.stderr.split('\n')[0]).toBe(
      `sigmoe: ERR_DOWNLOAD: ${ID} at ${hub.url}: it is gated (403) - the token of HF_TOKEN is not enough: accept the terms at ${hub.url}/${ID}, or take a token that may read it`,
    );
    expect(gated.stderr).not.toContain('hf_secret');
    expect(gated).toMatchObject({ status: 1, stdout: '' });
    const absent = await sigmoe(['generate', ID, 'x']);
    expect(absent.stderr).toMatch(/^sigmoe: ERR_NOT_FOUND: owner\/model-1.5: no such folder.*--download\)\n$/);
    expect((await sigmoe(['pull', 'model'])).stderr).toContain('expected owner/name');
  });

  test('generate --download', async () => {
    const { hub } = await startHub(nanoFiles());
    const answer = await sigmoe(['generate', ID, 'x', '--download', '--source', 'modelscope', '--max-tokens', '2']);
    expect(answer.status).toBe(0);
    expect(hub.seen[0]?.url).toContain('/api/v1/models/');
  });
});

describe('proxies', () => {
  const proxies: ReturnType<typeof createServer>[] = [];
  afterEach(() => {
    for (const proxy of proxies.splice(0)) proxy.closeAllConnections();
  });

  /** Counts what it is asked to connect to, and connects. */
  async function startProxy(): Promise<{ url: string; asked: string[] }> {
    const asked: string[] = [];
    const proxy = createServer().on('connect', (request, client, head) => {
      asked.push(request.url ?? '');
      const [host, port] = (request.url ?? '').split(':');
      const upstream = connect(Number(port), host, () => {
        client.write('HTTP/1.1 200 Connection established\r\n\r\n');
        upstream.write(head);
        upstream.pipe(client).pipe(upstream);
      });
      for (const socket of [client, upstream]) socket.on('error', () => {});
    });
    proxies.push(proxy);
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    return { url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, asked };
  }

  test('HTTP_PROXY is used, NO_PROXY leaves it out', async () => {
    const { hub } = await startHub();
    const proxy = await startProxy();
    process.env.HTTP_PROXY = proxy.url;
    await pull(ID, { include: ['config.json'] });
    expect(proxy.asked.length).toBeGreaterThan(0);
    expect(new Set(proxy.asked)).toEqual(new Set([new URL(hub.url).host]));
    proxy.asked.length = 0;
    process.env.NO_PROXY = '127.0.0.1';
    await pull(ID, { include: ['tokenizer.json'] });
    expect(proxy.asked).toEqual([]);
    expect(readFileSync(join(await pull(ID).then(({ path }) => path), 'config.json'), 'utf8')).toContain('bailing');
  });
});
