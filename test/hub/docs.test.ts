/** The blocks of docs/models.md and docs/airgap.md that need a network, run with a hub on this machine. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, expect, test } from 'vitest';
import { ended, main } from '../cli/run.js';
import { commandLines, pages } from '../docs/pages.js';
import { folderWith, root } from '../helpers/files.js';
import { nanoFiles, startHub } from './setup.js';

const ID = 'MedAIBase/AntAngelMed-FP8';
const blocks = pages.find(({ name }) => name === 'models.md')?.blocks ?? [];

const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
});

function run(program: string, args: string[]) {
  const folder = folderWith({});
  const shim = join(folder, 'sigmoe');
  writeFileSync(shim, `#!/bin/sh\nexec "${process.execPath}" "${main}" "$@"\n`);
  chmodSync(shim, 0o755);
  const env = { ...process.env, PATH: `${folder}${delimiter}${process.env.PATH ?? '/usr/bin:/bin'}` };
  const child = spawn(program, args, { cwd: folder, env });
  children.push(child);
  return { child, end: ended(child) };
}

test('every command of docs/models.md does what it says', async () => {
  const { hub } = await startHub(nanoFiles(), ID);
  const lines = blocks.filter(({ language }) => language === 'sh').flatMap(({ text }) => commandLines(text));
  expect(lines.length).toBeGreaterThan(4);
  for (const line of lines) {
    const serves = line.startsWith('sigmoe serve');
    const { child, end } = run('/bin/sh', ['-euc', `exec ${line}${serves ? ' --port 0' : ''}`]);
    if (serves) {
      const [url] = (await Promise.race([
        once(createInterface(child.stdout), 'line'),
        end.then(({ stderr }) => [stderr]),
      ])) as string[];
      expect(url, line).toMatch(/^http/);
      child.kill('SIGTERM');
    }
    expect({ line, status: (await end).status }).toEqual({ line, status: 0 });
  }
  expect(hub.seen.filter(({ url }) => url.startsWith('/api/v1/models'))).not.toEqual([]);
});

test('the program of docs/models.md runs', async () => {
  await startHub(nanoFiles(), ID);
  const [program] = blocks.filter(({ language }) => language === 'js');
  // Inside the package, where its own name can be imported.
  const path = join(root, 'build/docs/models-program.mjs');
  mkdirSync(join(root, 'build/docs'), { recursive: true });
  writeFileSync(path, program?.text ?? '');
  const { stdout, stderr, status } = await run(process.execPath, [path]).end;
  expect({ status, stdout }).toEqual({ status: 0, stdout: expect.stringMatching(/ holds [0-9a-f]{40}\n$/) });
  expect(stderr).toContain(' of 20');
});

test('the models of docs/airgap.md can be copied out of the cache, links followed', async () => {
  await startHub(nanoFiles(), ID);
  const target = join(folderWith({}), 'AntAngelMed-FP8');
  const line = pages.find(({ name }) => name === 'airgap.md')?.text.match(/^cp -rL .*$/m)?.[0] ?? '';
  expect((await run('/bin/sh', ['-euc', line.replace('/media/disk/AntAngelMed-FP8', target)]).end).status).toBe(0);
  const { stdout } = await run('sigmoe', ['generate', target, 'x', '--max-tokens', '2']).end;
  expect(stdout).not.toBe('');
});
