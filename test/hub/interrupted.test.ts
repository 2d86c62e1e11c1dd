/** Pulls in processes of their own: killed at random points, two at once, on a full disk. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { ended, main } from '../cli/run.js';
import { folderWith, root } from '../helpers/files.js';
import { COMMIT, FakeHub, gitSha1, sha256 } from './fake_hub.js';
import { BRISK, expectSame, hubEnvironment, ID, someFiles } from './setup.js';

const KILLS = 20;

let hub: FakeHub | undefined;
const children: ChildProcess[] = [];
afterEach(async () => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  await hub?.stop();
});

function startPull(
  env: NodeJS.ProcessEnv,
  args: string[] = [join(root, 'test/hub/pull_child.mjs'), ID, JSON.stringify(BRISK)],
) {
  const child = spawn(process.execPath, args, { env });
  children.push(child);
  return { child, end: ended(child) };
}

/**
 * The same files at another address, as fast as it goes. A hub may still be answering a process that was killed, whose connection it
 * has not seen close; what this one sends went to pulls that began after it.
 */
async function moveHub(files: Record<string, Buffer>): Promise<FakeHub> {
  await hub?.stop();
  hub = await FakeHub.start(ID, files);
  return hub;
}

/** Every blob is what its name says, and a revision has a name only when all of it is there. */
function expectSound(entry: string, files: Record<string, Buffer>): void {
  if (!existsSync(join(entry, 'blobs'))) return;
  const hashes = new Set(Object.values(files).flatMap((content) => [gitSha1(content), sha256(content)]));
  for (const name of readdirSync(join(entry, 'blobs')).filter((each) => !each.includes('.'))) {
    expect(hashes.has(name)).toBe(true);
    const content = readFileSync(join(entry, 'blobs', name));
    const found = name.length === 40 ? gitSha1(content) : createHash('sha256').update(content).digest('hex');
    expect(found).toBe(name);
  }
  if (existsSync(join(entry, 'refs/main'))) expectSame(join(entry, 'snapshots', COMMIT), files);
}

/** Bytes that a pull would not have to fetch. */
function bytesKept(entry: string): number {
  if (!existsSync(join(entry, 'blobs'))) return 0;
  const names = readdirSync(join(entry, 'blobs'));
  const whole = names.filter((name) => !name.includes('.')).map((name) => statSync(join(entry, 'blobs', name)).size);
  const journals = names.filter((name) => name.endsWith('.sigmoe.json') && !names.includes(name.split('.')[0] ?? ''));
  const parts = journals.flatMap(
    (name) => JSON.parse(readFileSync(join(entry, 'blobs', name), 'utf8')).ranges as { done: number }[],
  );
  return [...whole, ...parts.map(({ done }) => done)].reduce((sum, bytes) => sum + bytes, 0);
}

test(`a pull that is killed ${KILLS} times ends with the same bytes, and the cache is sound every time`, {
  timeout: 300_000,
}, async () => {
  const files = { ...someFiles(), 'model-00003-of-00003.safetensors': randomBytes(2_000_003) };
  delete (files as Record<string, Buffer>)['copy.bin'];
  hub = await FakeHub.start(ID, files);
  hub.pace = 800_000;
  const { env, caches } = hubEnvironment(hub);
  const entry = join(caches.huggingface, 'models--owner--model-1.5');
  const whole = Object.values(files).reduce((sum, { length }) => sum + length, 0);
  let finished = 0;
  let kept = 0;
  for (let kill = 0; kill < KILLS; kill++) {
    // Some way further than the last time, also into what comes after the last byte.
    const until = hub.sentBytes + 1 + Math.floor(Math.random() * ((2 * whole) / KILLS));
    const { child, end } = startPull(env);
    hub.onSent = (sent) => {
      if (sent >= until) child.kill('SIGKILL');
    };
    const { status } = await end;
    if (status === 0) finished++;
    expectSound(entry, files);
    // What had arrived stays.
    expect(bytesKept(entry)).toBeGreaterThanOrEqual(kept);
    kept = bytesKept(entry);
  }
  const sent = hub.sentBytes;
  const other = await moveHub(files);
  const { stdout, status, stderr } = await startPull({ ...env, HF_ENDPOINT: other.url }).end;
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  expectSame(JSON.parse(stdout).path, files);
  // No lock, no part, nothing but the entry.
  expect(readdirSync(join(entry, 'blobs')).filter((name) => name.includes('.'))).toEqual([]);
  expect(readdirSync(entry).sort()).toEqual(['blobs', 'refs', 'snapshots', 'trees']);
  expect(readdirSync(caches.huggingface)).toEqual(['models--owner--model-1.5']);
  expect(finished).toBeLessThan(KILLS);
  expect(other.sentBytes).toBe(whole - kept);
  console.log(
    `${KILLS} kills of a pull of ${whole} bytes: ${sent + other.sentBytes} were sent, ${other.sentBytes} after the last`,
  );
});

test('two processes at once: both end well, each byte is sent once; a third goes on when the first is killed', async () => {
  const files = someFiles();
  delete files['copy.bin'];
  hub = await FakeHub.start(ID, files);
  const whole = Object.values(files).reduce((sum, { length }) => sum + length, 0);
  // The hub keeps the first pull waiting until the second says that it waits.
  let open = () => {};
  const hold = () => {
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    return new Promise<void>((started) => {
      if (hub === undefined) return;
      hub.fault = async () => {
        started();
        await gate;
        return false;
      };
    });
  };
  let underWay = hold();
  const { env } = hubEnvironment(hub);
  const first = startPull(env);
  await underWay;
  const second = startPull(env, [main, 'pull', ID, '--json']);
  second.child.stderr.once('data', () => open());
  const [one, two] = await Promise.all([first.end, second.end]);
  expect([one.status, two.status]).toEqual([0, 0]);
  expect(hub.sentBytes).toBe(whole);
  expect(two.stderr).toBe('another process is downloading owner/model-1.5; waiting for it\n');
  expect(JSON.parse(two.stdout)).toEqual({ ...JSON.parse(one.stdout), downloadedBytes: 0 });

  underWay = hold();
  const again = hubEnvironment(hub);
  const killed = startPull(again.env);
  await underWay;
  const third = startPull(again.env, [main, 'pull', ID]);
  third.child.stderr.once('data', () => {
    killed.child.kill('SIGKILL');
    open();
  });
  const { stdout, status } = await third.end;
  expect(status).toBe(0);
  expectSame(stdout.trim(), files);
});

test('Ctrl-C ends a pull, and the next goes on', async () => {
  const files = someFiles();
  delete files['copy.bin'];
  hub = await FakeHub.start(ID, files);
  hub.pace = 200_000;
  const { env, caches } = hubEnvironment(hub);
  const { child, end } = startPull(env, [main, 'pull', ID]);
  let signalled = false; // a second signal would not wait until what arrived is written down
  hub.onSent = (sent) => {
    if (sent > 100_000 && !signalled) signalled = child.kill('SIGINT');
  };
  expect(await end).toMatchObject({ status: 130, stdout: '' });
  const kept = bytesKept(join(caches.huggingface, 'models--owner--model-1.5'));
  expect(kept).toBeGreaterThan(0);
  const other = await moveHub(files);
  const { stdout } = await startPull({ ...env, HF_ENDPOINT: other.url }, [main, 'pull', ID]).end;
  expectSame(stdout.trim(), files);
  const whole = Object.values(files).reduce((sum, { length }) => sum + length, 0);
  expect(other.sentBytes).toBe(whole - kept);
});

// A disk of its own, where this user may mount one.
const small = spawnSync('unshare', ['--mount', '--map-root-user', 'mount', '-t', 'tmpfs', 'none', '/mnt']).status === 0;
if (!small) console.log('NOT RUN: the tests of a full disk need unshare and a mount of tmpfs, which is not allowed here');

test.skipIf(!small)('a disk that is too small is told before the first byte; one that fills up, when it does', async () => {
  const files = { 'config.json': Buffer.from('{}'), 'model.safetensors': randomBytes(3_000_000) };
  hub = await FakeHub.start(ID, files);
  hub.pace = 300_000;
  const { env } = hubEnvironment(hub);
  const disk = folderWith({});
  const onDisk = (bytes: number, script: string) => {
    const { child, end } = startPull({ ...env, HF_HOME: join(disk, 'hf') }, [
      '-e',
      `const { spawnSync } = require('node:child_process');
       const { status } = spawnSync('unshare', ['--mount', '--map-root-user', 'sh', '-c', process.argv[1]], { stdio: 'inherit' });
       process.exit(status);`,
      `mount -t tmpfs -o size=${bytes} none '${disk}' && ${script}`,
    ]);
    // The first pull is slow enough to be overtaken, the one after it need not be.
    child.stderr.on('data', (data) => {
      if (hub !== undefined && String(data).includes('status')) hub.pace = 0;
    });
    return end;
  };
  const pull = `'${process.execPath}' '${main}' pull ${ID}`;
  const tooSmall = await onDisk(1_000_000, pull);
  expect(tooSmall.stderr).toMatch(/ERR_IO: owner\/model-1.5: 3000002 bytes are still to be downloaded, where \d+ are free in/);
  expect(tooSmall.status).toBe(1);
  expect(hub.sentBytes).toBe(0);

  // Somebody else takes the room while the pull is under way; when it is free again, the pull goes on.
  const filler = join(disk, 'filler');
  const taken = `(for i in $(seq 2000); do ls '${disk}'/hf/hub/*/blobs/*.incomplete >/dev/null 2>&1 && break; sleep 0.01; done; head -c 3000000 /dev/zero > '${filler}')`;
  const script = `(${taken} & ${pull}; echo status $? >&2; wait; rm '${filler}'; ${pull} && sha256sum '${disk}'/hf/hub/*/snapshots/*/model.safetensors)`;
  const full = await onDisk(4_000_000, script);
  expect(full.stderr).toMatch(/ERR_IO: model.safetensors: the disk is full: \d+ more bytes asked, \d+ free - make room/);
  expect(full.stderr).toContain('status 1');
  expect(full.stdout).toContain(sha256(files['model.safetensors']));
});
