/** `sigmoe bench serve`, `throughput`, `latency` and `compare` as they are typed, on the bundled model and the real server. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Model } from '../../lib/index.js';
import { buildApp } from '../../lib/server/app.js';
import { complaints, sigmoe } from '../cli/run.js';
import { folderWith, nano } from '../helpers/files.js';
import { chromiumPath, launch } from '../page/browser.js';

let model: Model;
let app: FastifyInstance;
let url: string;

beforeAll(async () => {
  model = await Model.load(nano);
  app = buildApp(model, { modelName: 'nano' });
  url = await app.listen({ port: 0, host: '127.0.0.1' });
});
afterAll(async () => {
  await app?.close();
  await model?.dispose();
});

const read = (...path: string[]) => JSON.parse(readFileSync(join(...path), 'utf8')) as Record<string, unknown>;
const load = [
  '--num-prompts',
  '6',
  '--random-input-len',
  '50',
  '--random-output-len',
  '8',
  '--ignore-eos',
  '--tokenizer',
  nano,
];

test('serve: prompts of the exact length, answers of the full one, a result file, a table', async () => {
  const folder = folderWith({});
  const args = ['--base-url', `${url}/`, ...load, '--temperature', '0', '--goodput', 'ttft:60000', 'e2el:60000'];
  const saved = ['--save-detailed', '--result-dir', join(folder, 'new'), '--metadata', 'machine=test', 'cache=on'];
  const result = await sigmoe(['bench', 'serve', ...args, ...saved]);
  expect(result).toMatchObject({ status: 0 });
  expect(result.stdout).toContain('Successful requests:                     6');
  const [name = ''] = readdirSync(join(folder, 'new'));
  expect(name).toMatch(/^openai-infqps-nano-\d{8}-\d{6}\.json$/);
  expect(read(folder, 'new', name)).toMatchObject({
    backend: 'openai',
    model_id: 'nano',
    tokenizer_id: nano,
    num_prompts: 6,
    request_rate: 'inf',
    max_concurrency: null,
    machine: 'test',
    cache: 'on',
    completed: 6,
    failed: 0,
    total_input_tokens: 300,
    total_output_tokens: 48,
    input_lens: Array(6).fill(50),
    output_lens: Array(6).fill(8),
    errors: Array(6).fill(''),
  });
});

test('serve: a list of concurrencies over chat, keys of SGLang, a report that opens without a network', async () => {
  const folder = folderWith({});
  const args = ['--base-url', url, '--backend', 'openai-chat', '--max-concurrency', '1,3', '--num-warmups', '1'];
  const dataset = ['--dataset-name', 'prompts', '--num-prompts', '5', '--output-len', '6', '--request-rate', '200'];
  const output = ['--format', 'sglang', '--save-result', '--result-dir', folder, '--result-filename', 'a.jsonl'];
  const html = join(folder, 'report.html');
  const result = await sigmoe(['bench', 'serve', ...args, ...dataset, ...output, '--html', html, '--json']);
  expect(result.status).toBe(0);
  const printed = result.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  const lines = readFileSync(join(folder, 'a.jsonl'), 'utf8').trim().split('\n');
  expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual(printed);
  expect(printed.map((each) => [each.max_concurrency, each.completed, each.dataset_name])).toEqual([
    [1, 5, 'prompts'],
    [3, 5, 'prompts'],
  ]);
  const table = await sigmoe(['bench', 'compare', join(folder, 'a.jsonl')]);
  expect(table.stdout).toMatch(/a\.jsonl .*200 req\/s, 1 limit[\s\S]*200 req\/s, 3 limit/);
  if (chromiumPath === undefined) {
    console.log('NOT RUN: opening the report: no Chromium here');
    return;
  }
  const browser = await launch();
  const page = await browser.newPage();
  const requests: string[] = [];
  page.on('request', (request) => requests.push(request.url()));
  await page.goto(`file://${html}`);
  expect(await page.getByRole('img').count()).toBe(8);
  expect(await page.title()).toBe('Serving benchmark of nano');
  await browser.close();
  expect(requests).toEqual([`file://${html}`]);
});

test('throughput and latency: every token asked for is made and counted', async () => {
  const folder = folderWith({});
  const sizes = ['--input-len', '20', '--output-len', '5', '--num-prompts', '7'];
  const throughput = await sigmoe(['bench', 'throughput', nano, ...sizes, '--output-json', join(folder, 't.json')]);
  expect(complaints(throughput)).toEqual([]);
  expect(throughput.stdout).toMatch(/^Throughput: [\d.]+ requests\/s, [\d.]+ total tokens\/s, [\d.]+ output tokens\/s\n/);
  expect(read(folder, 't.json')).toMatchObject({ num_requests: 7, total_num_tokens: 7 * 25 });

  const html = join(folder, 'l.html');
  const iterations = ['--num-iters', '3', '--num-iters-warmup', '1', '--batch-size', '2', '--output-len', '4'];
  const latency = await sigmoe(['bench', 'latency', '--model', nano, ...iterations, '--json', '--html', html]);
  expect(complaints(latency)).toEqual([]);
  const result = JSON.parse(latency.stdout) as { latencies: number[]; percentiles: Record<string, number> };
  expect(result.latencies).toHaveLength(3);
  expect(Object.keys(result.percentiles)).toEqual(['10', '25', '50', '75', '90', '99']);
  expect(existsSync(html)).toBe(true);
});

test.each([
  ['a server that is not there', ['serve', '--port', '1'], 1, 'http://127.0.0.1:1/v1/models: connect ECONNREFUSED'],
  ['an address that is none', ['serve', '--base-url', 'localhost:80'], 2, 'expected http://'],
  ['no tokenizer', ['serve', '--model', 'x'], 2, 'need a tokenizer'],
  ['an unknown dataset', ['serve', '--model', 'x', '--dataset-name', 'sharegpt'], 2, 'there are random, prompts, custom'],
  ['a rate of nothing', ['serve', '--request-rate', '0'], 2, 'expected more than 0'],
  ['an unknown metric', ['serve', '--percentile-metrics', 'ttfb'], 2, 'no "ttfb"'],
  ['a negative target', ['serve', '--goodput', 'ttft:-1'], 2, 'no time'],
  ['an unknown target', ['serve', '--goodput', 'itl:3'], 2, 'metric:ms'],
  ['no model', ['latency'], 2, 'one model folder'],
  ['a batch of nothing', ['latency', nano, '--batch-size', '0'], 2, '--batch-size 0'],
  [
    'a dataset that is not there',
    ['throughput', nano, '--dataset-name', 'custom', '--dataset-path', '/no/such'],
    1,
    'no such file',
  ],
  ['a result that is none', ['compare', 'package.json'], 1, 'package.json: expected the JSON of a serving benchmark'],
])('%s fails in one line', async (_, args, status, words) => {
  const result = await sigmoe(['bench', ...args]);
  const lines = complaints(result);
  expect(lines).toHaveLength(1);
  expect(lines[0]).toContain(words);
  expect(result).toMatchObject({ status, stdout: '' });
});

test('speculation of a shape: the replayed acceptance comes out, and what does not go together is refused', async () => {
  const flags = ['--batch', '1,3', '--context', '20', '--steps', '40', '--threads', '1', '--json'];
  const run = (...more: string[]) => sigmoe(['bench', 'speculation', '--shape', 'nano:3', ...flags, ...more]);
  const { rows, acceptance } = JSON.parse((await run('--acceptance', '0.25,0,0.25,0.5')).stdout);
  expect(acceptance.meanTokens).toBe(3);
  expect(rows.map(({ batch }: { batch: number }) => batch)).toEqual([1, 3]);
  for (const row of rows) {
    expect(row.tokensPerStep).toBeGreaterThan(2.2);
    expect(row.tokensPerStep).toBeLessThan(3.8);
    for (const cost of [row.plainStepMs, row.verifyStepMs, row.draftMs, row.gain]) expect(cost).toBeGreaterThan(0);
    expect(row.draftShare).toBeCloseTo(row.draftMs / (row.draftMs + row.verifyStepMs), 6);
  }
  const always = JSON.parse((await run('--acceptance', '4')).stdout);
  for (const row of always.rows) expect(row.tokensPerStep).toBe(4);
  for (const wrong of [
    ['--acceptance', '4.5'],
    ['--acceptance', 'often'],
    ['--acceptance', '0.5,0.5'],
    ['--draft', nano],
  ]) {
    const refused = await run(...wrong);
    expect(refused.status).not.toBe(0);
    expect(refused.stderr).not.toBe('');
  }
  expect((await sigmoe(['bench', 'speculation', nano, '--acceptance', '3'])).stderr).toContain('--shape');
});

test('speculation: both ways on the same text, drafts that came true, costs of the parts', async () => {
  const folder = folderWith({});
  const file = join(folder, 'speculation.json');
  const flags = ['--batch', '1,3', '--output-len', '12', '--rounds', '1', '--speculative', 'mtp', '--speculative-depth', '2'];
  const result = await sigmoe(['bench', 'speculation', nano, ...flags, '--output-json', file]);
  expect(result).toMatchObject({ status: 0 });
  expect(result.stdout).toContain('mtp, at most 2 tokens drafted');
  const { rows } = read(folder, 'speculation.json') as { rows: Record<string, number>[] };
  expect(rows.map(({ batch, adaptive }) => [batch, adaptive])).toEqual([
    [1, false],
    [3, false],
    [1, true],
    [3, true],
  ]);
  for (const row of rows.slice(0, 2)) {
    expect(row).toMatchObject({ verifyShare: expect.closeTo(1, 0) });
    expect(row.tokensPerStep).toBeGreaterThan(1);
    for (const name of ['gain', 'plainStepMs', 'verifyStepMs', 'draftMs', 'acceptance']) expect(row[name]).toBeGreaterThan(0);
  }
  for (const wrong of [
    ['--batch', '1,0'],
    ['--speculative', 'none'],
    ['--output-len', '1'],
  ]) {
    const refused = await sigmoe(['bench', 'speculation', nano, ...wrong]);
    expect(refused.status).toBe(2);
    expect(complaints(refused)).toHaveLength(1);
  }
});
