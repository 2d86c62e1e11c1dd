/** What docs/ names exists: every flag, every metric, every route, every file. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { expect, test } from 'vitest';
import { buildProgram, withSubcommands } from '../../lib/cli/program.js';
import { Model } from '../../lib/index.js';
import { buildApp } from '../../lib/server/index.js';
import { nano, root } from '../helpers/files.js';

const pages = readdirSync(join(root, 'docs')).map((name) => ({ name, text: readFileSync(join(root, 'docs', name), 'utf8') }));
const serving = pages.find(({ name }) => name === 'serving.md')?.text ?? '';

/** The commands of the code blocks, a line each. */
function commandsOf(text: string): string[] {
  const blocks = [...text.matchAll(/```sh\n([\s\S]*?)```/g)].map(([, block = '']) => block.replace(/\\\n\s*/g, ' '));
  return blocks.flatMap((block) => block.split('\n')).flatMap((line) => /(?:^|\s)(sigmoe .*?)(?: &)?$/.exec(line)?.[1] ?? []);
}

function flagsOf(command: Command): Set<string> {
  return new Set(command.options.flatMap(({ long }) => long ?? []));
}

test('every flag of every command in the docs is one of that command', () => {
  const program = buildProgram();
  let checked = 0;
  for (const { name, text } of pages) {
    for (const line of commandsOf(text)) {
      const [, first, second] = line.split(/\s+/);
      const whole = program.commands.find((each) => each.name() === first) ?? program;
      const command = whole.commands.find((each) => each.name() === second) ?? whole;
      const used = [...line.matchAll(/(?<=\s)--[\w-]+/g)].map(([flag]) => flag.replaceAll('_', '-'));
      const known = flagsOf(command);
      expect(
        used.filter((flag) => !known.has(flag)),
        `${name}: ${line}`,
      ).toEqual([]);
      checked += used.length;
    }
  }
  expect(checked).toBeGreaterThan(30);
});

test('every flag the docs mention exists, and every file they link to', () => {
  const known = new Set(['--help', '--import', '--output-file']); // the last two are of Node and SGLang
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
