/** npm run docs: every page is on the site, links and their anchors lead somewhere, and TypeDoc has nothing to warn of. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { folderWith, root } from '../helpers/files.js';
import { pages } from './pages.js';

const { projectDocuments } = JSON.parse(readFileSync(join(root, 'typedoc.json'), 'utf8')) as { projectDocuments: string[] };

test('every page is on the site and in the index', () => {
  const index = pages.find(({ name }) => name === 'index.md')?.text ?? '';
  for (const { name } of pages) {
    if (name === 'index.md') continue;
    expect(projectDocuments, name).toContain(`build-docs/${name}`);
    expect(index, name).toContain(`(${name}`);
  }
});

test('anchors of links between pages are headings', () => {
  let checked = 0;
  for (const { name, text } of pages) {
    for (const [, page, anchor] of text.matchAll(/\]\(([\w-]+\.md)?#([\w-]+)\)/g)) {
      const target = pages.find((each) => each.name === (page ?? name))?.text ?? '';
      const headings = [...target.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) => slug(heading));
      expect(headings, `${name} links to ${page ?? ''}#${anchor}`).toContain(anchor);
      checked++;
    }
  }
  expect(checked).toBeGreaterThan(3);
});

// As GitHub and TypeDoc make anchors of headings.
function slug(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\w\s-]/g, '')
    .trim()
    .replaceAll(' ', '-');
}

test('the site is built without a warning', { timeout: 300_000 }, () => {
  const site = folderWith({});
  const args = [join(root, 'scripts/docs.mjs'), '--out', site, '--treatWarningsAsErrors'];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
  expect({ status, output: status === 0 ? '' : stdout + stderr }).toEqual({ status: 0, output: '' });
  expect(readFileSync(join(site, 'index.html'), 'utf8')).toContain('Getting started');
  // One page for each document, one for each exported class, and the help of every command.
  expect(readdirSync(join(site, 'documents')).length).toBeGreaterThanOrEqual(pages.length);
  for (const name of ['Model', 'Tokenizer', 'EngineError'])
    expect(existsSync(join(site, `classes/index.${name}.html`))).toBe(true);
  const reference = readFileSync(join(site, 'documents/Command_reference.html'), 'utf8');
  for (const flag of ['--max-tokens', '--served-model-name', '--revision']) expect(reference).toContain(flag);
});
