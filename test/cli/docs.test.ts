/** What docs/ names exists: every flag, every metric, every route, every file. Its code blocks: test/docs/blocks.test.ts. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { expect, test } from 'vitest';
import { buildProgram, withSubcommands } from '../../lib/cli/program.js';
import { Model } from '../../lib/index.js';
import { buildApp } from '../../lib/server/index.js';
import { nano, root } from '../helpers/files.js';

const pages = readdirSync(join(root, 'docs'))
  .filter((name) => name.endsWith('.md'))
  .map((name) => ({ name, text: readFileSync(join(root, 'docs', name), 'utf8') }));
const serving = pages.find(({ name }) => name === 'serving.md')?.text ?? '';

/** Of Node, SGLang, npm and the scripts of this repository. */
const OF_OTHERS = ['--import', '--no-addons', '--output-file', '--ignore-scripts', '--arch', '--ours'];

function flagsOf(command: Command): Set<string> {
  return new Set(command.options.flatMap(({ long }) => long ?? []));
}

test('every flag the docs mention exists, and every file they link to', () => {
  const known = new Set(['--help', ...OF_OTHERS]);
  for (const each of withSubcommands(buildProgram())) for (const flag of flagsOf(each)) known.add(flag);
  let count = 0;
  for (const { name, text } of pages) {
    const mentioned = [...text.matchAll(/`(--[a-z-]+)/g)].map(([, flag = '']) => flag);
    count += mentioned.length;
    expect(
      mentioned.filter((flag) => !known.has(flag)),
      name,
    ).toEqual([]);
    const links = [...text.matchAll(/\]\((?!#|http)([^)#]+)/g)].map(([, path = '']) => path);
    expect(
      links.filter((path) => !existsSync(join(root, 'docs', path))),
      name,
    ).toEqual([]);
  }
  expect(count).toBeGreaterThan(20);
});

test('every metric and every route the docs list is one of the server', async () => {
  const model = await Model.load(nano);
  const app = buildApp(model, { modelName: 'nano' });
  const { body } = await app.inject('/metrics');
  const table = serving.slice(serving.indexOf('## Metrics'), serving.indexOf('scrape_configs'));
  const metrics = [...table.matchAll(/`([a-z0-9_]+)`/g)].map(([, metric = '']) => metric);
  expect(metrics.length).toBeGreaterThan(15);
  expect(metrics.filter((metric) => !body.includes(`# TYPE sigmoe:${metric} `))).toEqual([]);
  const rows = serving.slice(serving.indexOf('| route |'), serving.indexOf('Any client'));
  const routes = [...rows.matchAll(/`(GET |POST )?(\/[\w/]*)/g)].map(([, , url = '']) => url);
  expect(routes.length).toBeGreaterThan(9);
  expect(
    routes.filter(
      (url) =>
        !['GET', 'POST'].some(
          (method) => app.hasRoute({ method, url: url.replace(/\/$/, '/:model') || '/' }) || app.hasRoute({ method, url }),
        ),
    ),
  ).toEqual([]);
  await app.close();
  await model.dispose();
});
