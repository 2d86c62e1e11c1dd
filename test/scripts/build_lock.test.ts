import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';

const tools = pathToFileURL(join(import.meta.dirname, '../../scripts/tools.mjs'));

// Says "in", stays for a while, says "out". The lock is that of this checkout's name below, not of a real build.
function holder(root: string, milliseconds: number): ChildProcess {
  const program = `
    import { withBuildLock } from ${JSON.stringify(tools.href)};
    await withBuildLock(async () => {
      console.log('in');
      await new Promise((resolve) => setTimeout(resolve, ${milliseconds}));
      console.log('out');
    }, ${JSON.stringify(root)});`;
  return spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'ignore'] });
}

test('builds in one folder take turns', async () => {
  const said: string[] = [];
  const children = [1, 2, 3, 4].map(() => holder('/one', 100));
  for (const child of children) child.stdout?.on('data', (data) => said.push(...String(data).trim().split('\n')));
  await Promise.all(children.map((child) => once(child, 'close')));
  expect(said).toEqual(['in', 'out', 'in', 'out', 'in', 'out', 'in', 'out']);
});

test('a killed build leaves no lock behind', async () => {
  const first = holder('/two', 60_000);
  if (first.stdout === null) throw new Error('no pipe');
  await once(first.stdout, 'data');
  const second = holder('/two', 0);
  first.kill('SIGKILL');
  expect(await once(second, 'close')).toEqual([0, null]);
});
