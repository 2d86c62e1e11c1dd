import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { root } from '../helpers/files.js';

const readme = readFileSync(join(root, 'README.md'), 'utf8');

test('the first program of the README runs', () => {
  const [, program] = /```js\n([\s\S]*?)```/.exec(readme) ?? [];
  // Inside the package, where its own name can be imported.
  const path = join(root, 'build/readme.mjs');
  mkdirSync(join(root, 'build'), { recursive: true });
  writeFileSync(path, program ?? '');
  const { stdout, stderr, status } = spawnSync(process.execPath, [path], { cwd: root, encoding: 'utf8' });
  expect({ stderr, status }).toEqual({ stderr: '', status: 0 });
  expect(stdout).toMatch(/\n\d+ tokens on .+, ended by (stop|length)\n$/);
});

test('every file the README names exists', () => {
  const links = [...readme.matchAll(/\]\((?!#|http)([^)]+)\)/g)].map(([, path]) => path ?? '');
  const table = readme.slice(readme.indexOf('## Where to look'), readme.indexOf('## Working on it'));
  const named = [...table.matchAll(/`([\w./]+)`/g)].map(([, path]) => path ?? '').filter((path) => path.includes('/'));
  expect(named.length).toBeGreaterThan(10);
  expect([...links, ...named].filter((path) => !existsSync(join(root, path)))).toEqual([]);
});
