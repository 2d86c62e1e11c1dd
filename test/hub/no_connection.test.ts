/** Nothing in sigmoe connects to anything outside but `pull` and `download: true`: by what it does, and by what it could. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { beforeAll, describe, expect, test } from 'vitest';
import { addonOrigin } from '../../lib/native.js';
import { ended, sigmoe, start } from '../cli/run.js';
import { folderWith, nano, root } from '../helpers/files.js';
import { recordConnections } from './connections.js';
import { ID, nanoFiles, startHub } from './setup.js';

/** A way to run every command; those of bundle.test.ts are recorded there. */
const RUNS: Record<string, string[] | undefined> = {
  generate: ['generate', nano, 'What is asthma?', '--max-tokens', '3', '--speculative', 'ngram'],
  chat: ['chat', nano, '--max-tokens', '3'],
  inspect: ['inspect', nano],
  bench: ['bench', '--shape', 'nano', '--repeats', '1', '--prefill', '16'],
  devices: ['devices'],
  doctor: ['doctor'],
  selftest: ['selftest', nano],
  quantize: ['quantize', nano, join(folderWith({}), 'out')],
};
const ELSEWHERE = ['serve', 'pull', 'bundle', 'help'];

describe('what commands do', () => {
  let recorded: () => string[] = () => [];
  let commands: string[] = [];
  beforeAll(async () => {
    recorded = recordConnections();
    const { stdout } = await sigmoe(['--help']);
    const [, list = ''] = /^Commands:\n((?: .*\n)+)/m.exec(stdout) ?? [];
    commands = [...list.matchAll(/^ {2}(\w+)/gm)].map(([, name = '']) => name);
  });

  test('every command is tried here or elsewhere', () => {
    expect(commands).toContain('generate');
    expect(commands.filter((name) => RUNS[name] === undefined && !ELSEWHERE.includes(name))).toEqual([]);
  });

  test.each(Object.entries(RUNS))('%s connects to nothing', async (name, args) => {
    if (!commands.includes(name)) return console.log(`NOT RUN: there is no command ${name}`);
    const { stdout, stderr } = await sigmoe(args ?? [], 'hello\n');
    expect(`${stdout}${stderr}`).not.toBe('');
    expect(recorded()).toEqual([]);
  });

  test('serve connects to nothing while it answers', async () => {
    const server = start(['serve', nano, '--port', '0', '--threads', '1']);
    const end = ended(server);
    const url = await new Promise<string>((resolve) => createInterface(server.stdout).once('line', resolve));
    const body = JSON.stringify({ model: nano, messages: [{ role: 'user', content: 'fever?' }], max_tokens: 3 });
    const headers = { 'content-type': 'application/json' };
    for (const path of ['/v1/chat/completions', '/v1/responses']) {
      const asked = path.endsWith('responses') ? JSON.stringify({ model: nano, input: 'fever?', max_output_tokens: 16 }) : body;
      expect((await fetch(url + path, { method: 'POST', body: asked, headers })).status).toBe(200);
    }
    for (const path of ['/', '/health', '/metrics', '/v1/models']) expect((await fetch(url + path)).status).toBe(200);
    server.kill('SIGTERM');
    expect((await end).status).toBe(0);
    expect(recorded()).toEqual([]);
  });

  test('a model that is not in the cache is not looked for elsewhere; pull and --download are what connects', async () => {
    const { hub } = await startHub(nanoFiles());
    recorded = recordConnections();
    await sigmoe(['generate', ID, 'x']);
    await sigmoe(['inspect', ID]);
    await sigmoe(['pull', ID, '--offline']);
    expect(recorded()).toEqual([]);
    expect((await sigmoe(['pull', ID])).status).toBe(0);
    const hosts = new Set(recorded());
    expect(hosts).toContain(`connect ${new URL(hub.url).host}`);
    // To the hub and the store it redirects to, on this machine; nowhere else.
    expect([...hosts].filter((line) => !line.startsWith('connect 127.0.0.1:'))).toEqual([]);
    await sigmoe(['generate', ID, 'x', '--max-tokens', '1']);
    expect(recorded()).toEqual([]);
  });
});

describe('what the code could do', () => {
  /** Who may use the network, and for what. */
  const ALLOWED: Record<string, RegExp> = {
    'lib/hub/http.ts': /undici/, // pull and download: true
    'lib/hub/lock.ts': /node:net/, // a socket without an address: the lock of a cache entry
    'lib/bench/client.ts': /node:https?/, // bench serve: to the server that its user names
    'lib/server/page/server_script.ts': /fetch/, // runs in the browser, to its own server
  };
  // A server listens; that is no connection of its own.
  const LISTENS = /^import \{ createServer(, type Server)? \} from 'node:(net|http|https)'/;
  const NETWORK = /from 'node:(net|http|https|http2|tls|dns|dns\/promises|dgram)'|undici|\bfetch\(|new (WebSocket|EventSource)/;

  test('in lib, only these files open connections', () => {
    const found: string[] = [];
    for (const name of readdirSync(join(root, 'lib'), { recursive: true, encoding: 'utf8' }).filter((each) =>
      each.endsWith('.ts'),
    )) {
      const file = `lib/${name}`;
      for (const line of readFileSync(join(root, file), 'utf8').split('\n')) {
        if (
          !NETWORK.test(line) ||
          /^import type |^\s*(\/?\*|\/\/)/.test(line) ||
          LISTENS.test(line) ||
          ALLOWED[file]?.test(line)
        )
          continue;
        found.push(`${file}: ${line}`);
      }
    }
    expect(found).toEqual([]);
    for (const file of Object.keys(ALLOWED)) expect(existsSync(join(root, file)), file).toBe(true);
  });

  // The nodes of a world of several processes talk to their leader (docs/several-machines.md), nobody else to anybody.
  test('in the native code, only nodes can open connections', () => {
    const sources = (folder: string): string[] =>
      readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
        .filter((name) => /\.(cpp|h|cu|cuh)$/.test(name))
        .map((name) => `${folder}/${name}`);
    const files = [...sources('csrc'), ...sources('kernels')];
    const using = (pattern: RegExp): string[] =>
      files.filter((file) => pattern.test(readFileSync(join(root, file), 'utf8'))).sort();
    const NODES = /^csrc\/backend\/(wire|node\w*)\.(cpp|h)$/;
    expect(using(/#include <(sys\/socket|netdb|netinet\/\w+|arpa\/inet)\.h>/)).toContain('csrc/backend/wire.cpp');
    expect(
      using(/#include <(sys\/socket|netdb|netinet\/\w+|arpa\/inet)\.h>|backend\/wire\.h"/).filter((file) => !NODES.test(file)),
    ).toEqual([]);
  });

  test('the addon imports no other function of the system that connects or looks up names', () => {
    const names = readFileSync(addonOrigin().path).toString('latin1').split('\0');
    // What it does import is found so.
    expect(names).toContain('dlopen');
    const network = ['gethostbyname', 'gethostbyaddr', 'sendto', 'sendmsg', 'sendmmsg', 'res_query', 'res_search'];
    expect(network.filter((name) => names.includes(name))).toEqual([]);
  });
});

test('the recorder sees names, addresses and sockets', () => {
  const recorded = recordConnections();
  const script = `
    import net from 'node:net';
    import dns from 'node:dns/promises';
    import dgram from 'node:dgram';
    net.connect(1, '127.0.0.1').on('error', () => {});
    net.connect({ path: '/no/such' }).on('error', () => {});
    fetch('http://127.0.0.1:59998').catch(() => {});
    dns.lookup('hub.invalid').catch(() => {});
    const socket = dgram.createSocket('udp4');
    socket.send('x', 1, '127.0.0.1', () => socket.close());`;
  spawnSync(process.execPath, ['--input-type=module', '-e', script], { cwd: folderWith({}) });
  const lines = recorded();
  for (const line of ['connect 127.0.0.1:1', 'connect 127.0.0.1:59998', 'unix /no/such', 'lookup hub.invalid', 'datagram send'])
    expect(lines).toContain(line);
});
