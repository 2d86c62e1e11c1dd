import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';
import { folderWith, root } from '../helpers/files.js';

const tools = pathToFileURL(join(root, 'scripts/tools.mjs'));

// Says "in", stays for a while, says "out". What several write to one file stands there in the order of
// writing; pipes would be read in any.
function holder(folder: string, milliseconds: number, said: 'pipe' | number = 'pipe'): ChildProcess {
  const program = `
    import { writeSync } from 'node:fs';
    import { withBuildLock } from ${JSON.stringify(tools.href)};
    await withBuildLock(async () => {
      writeSync(1, 'in\\n');
      await new Promise((resolve) => setTimeout(resolve, ${milliseconds}));
      writeSync(1, 'out\\n');
    }, ${JSON.stringify(folder)});`;
  return spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', said, 'ignore'] });
}

test('builds in one folder take turns', async () => {
  const folder = folderWith({});
  const log = join(folder, 'log');
  const said = openSync(log, 'a');
  const children = [1, 2, 3, 4].map(() => holder(folder, 100, said));
  await Promise.all(children.map((child) => once(child, 'close')));
  closeSync(said);
  expect(readFileSync(log, 'utf8')).toBe('in\nout\n'.repeat(4));
});

test('a killed build leaves no lock behind', async () => {
  const folder = folderWith({});
  const first = holder(folder, 60_000);
  if (first.stdout === null) throw new Error('no pipe');
  await once(first.stdout, 'data');
  const second = holder(folder, 0);
  first.kill('SIGKILL');
  expect(await once(second, 'close')).toEqual([0, null]);
});
