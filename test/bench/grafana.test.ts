/** The dashboard shows what the server measures: every metric it asks for is one that a running server has. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { Model } from '../../lib/index.js';
import { buildApp } from '../../lib/server/app.js';
import { nano, root } from '../helpers/files.js';

interface Panel {
  id: number;
  type: string;
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: { expr: string; datasource: { uid: string } }[];
}

const text = readFileSync(join(root, 'deploy/grafana/sigmoe.json'), 'utf8');
const dashboard = JSON.parse(text) as { panels: Panel[]; templating: { list: { name: string; definition?: string }[] } };
const queries = dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));
const definitions = dashboard.templating.list.flatMap(({ definition }) => definition ?? []);

test('every metric of the dashboard exists in the server, with the labels it groups by', async () => {
  const model = await Model.load(nano);
  const app = buildApp(model, { modelName: 'nano' });
  const payload = { prompt: 'Fever is', max_tokens: 4, model: 'nano' };
  expect((await app.inject({ method: 'POST', url: '/v1/completions', payload })).statusCode).toBe(200);
  const { body } = await app.inject('/metrics');
  await app.close();
  await model.dispose();
  const exposed = new Set([...body.matchAll(/^([\w:]+)(?:\{| )/gm)].map(([, name]) => name));
  const asked = [...queries, ...definitions].flatMap((query) => query.match(/\b(?:sigmoe:|nodejs_|process_)\w+/g) ?? []);
  expect(new Set(asked).size).toBeGreaterThan(25);
  expect(asked.filter((name) => !exposed.has(name))).toEqual([]);
  for (const label of ['model_name', 'status', 'finished_reason', 'le']) expect(body).toContain(`${label}="`);
});

test('panels have an id of their own and a place of their own; every query names its data source by the variable', () => {
  const { panels } = dashboard;
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  const taken = new Set<string>();
  for (const { title, gridPos } of panels) {
    expect(gridPos.x + gridPos.w).toBeLessThanOrEqual(24);
    for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
      for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
        expect(taken, `${title} at ${x},${y}`).not.toContain(`${x},${y}`);
        taken.add(`${x},${y}`);
      }
    }
  }
  for (const { targets = [] } of panels)
    expect(targets.every(({ datasource }) => datasource.uid === '$' + '{datasource}')).toBe(true);
  const variables = new Set(dashboard.templating.list.map(({ name }) => name).concat('__rate_interval', '__all'));
  expect([...text.matchAll(/\$\{?(\w+)/g)].map(([, name]) => name ?? '').filter((name) => !variables.has(name))).toEqual([]);
});
