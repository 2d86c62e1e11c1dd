/** The programs of examples/ that serve a hospital's app, run on the bundled model. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { expect, test } from 'vitest';
import { nano, root } from '../helpers/files.js';

interface Ended {
  stdout: string;
  stderr: string;
  status: number | null;
}

function start(example: string, args: string[]): ChildProcessByStdio<Writable, Readable, Readable> {
  return spawn(process.execPath, [join(root, 'examples', example), ...args], { cwd: root, stdio: 'pipe' });
}

async function run(example: string, args: string[], input = ''): Promise<Ended> {
  const child = start(example, args);
  const ended: Ended = { stdout: '', stderr: '', status: null };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    ended.stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    ended.stderr += text;
  });
  child.stdin.on('error', () => {}).end(input);
  [ended.status] = await once(child, 'close');
  return ended;
}

test('a batch over a CSV of cases', async () => {
  const { stdout, stderr, status } = await run('batch_csv.mjs', [join(root, 'examples/cases.csv'), nano]);
  expect({ status, last: stderr.split('\r').at(-1) }).toEqual({ status: 0, last: '5 of 5 cases\n' });
  const lines = stdout.trimEnd().split('\n');
  expect(lines[0]).toBe('id,answer,tokens,finish');
  // An answer is one cell, commas, quotes and line breaks included.
  const rows = [...stdout.matchAll(/^(c-0\d),("(?:[^"]|"")*"|[^",\n]*),(\d+),(stop|length)$/gm)];
  expect(rows.map(([, id]) => id)).toEqual(['c-01', 'c-02', 'c-03', 'c-04', 'c-05']);
});

test('structured records from notes', async () => {
  const { stdout, ...rest } = await run('extract_records.mjs', [nano]);
  expect(rest).toEqual({ stderr: '', status: 0 });
  const records = stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(records).toHaveLength(2);
  for (const record of records) {
    if ('error' in record) expect(record).toEqual({ error: 'no whole record: length' });
    else expect(Object.keys(record)).toEqual(['sex', 'age', 'complaint', 'durationDays', 'allergies', 'drugs']);
  }
  expect(records.filter((record) => 'age' in record).length).toBeGreaterThan(0);
});

test('a triage of several turns', async () => {
  const { stdout, ...rest } = await run('triage.mjs', [nano], 'chest pain\nsince an hour\nyes\nin the left arm too\n');
  expect(rest).toEqual({ stderr: '', status: 0 });
  expect(stdout).toMatch(/^What brings you here\?\n/);
  expect(stdout).toMatch(/urgency: '(emergency|today|this week|self-care)'/);
  const [, cached] = /\n(\d+) of \d+ prompt tokens came from the prefix cache\n$/.exec(stdout) ?? [];
  expect(Number(cached)).toBeGreaterThan(0);
});

test('a triage that nobody answers ends', async () => {
  expect(await run('triage.mjs', [nano])).toEqual({ stdout: 'What brings you here?\n', stderr: '', status: 0 });
});

test('a chat in an Express app', async () => {
  const child = start('express_chat.mjs', [nano, '0']);
  const closed = once(child, 'close');
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const [url] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
  const ask = (session: string, body: unknown, signal?: AbortSignal): Promise<Response> =>
    fetch(`${url}/sessions/${session}/messages`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      ...(signal === undefined ? {} : { signal }),
    });
  const events = async (response: Response): Promise<{ text?: string; finishReason?: string; tokens?: number }[]> =>
    [...(await response.text()).matchAll(/^data: (.*)$/gm)].map(([, data = '']) => JSON.parse(data));

  expect(await (await fetch(`${url}/health`)).json()).toMatchObject({ device: 'cpu' });
  for (const question of ['What is asthma?', 'How is it treated?']) {
    const answer = await events(await ask('a', { text: question }));
    expect(answer.at(-1)).toMatchObject({ finishReason: expect.stringMatching(/^(stop|length)$/), tokens: expect.any(Number) });
    expect(answer.map(({ text }) => text ?? '').join('').length).toBeGreaterThan(0);
  }
  expect((await ask('a', { text: ' ' })).status).toBe(400);

  // A reader that leaves: the app goes on.
  const leaving = new AbortController();
  const left = await ask('b', { text: 'What is diabetes?' }, leaving.signal);
  leaving.abort();
  await expect(left.text()).rejects.toThrow();
  expect((await events(await ask('c', { text: 'And now?' }))).at(-1)).toHaveProperty('finishReason');
  expect((await fetch(`${url}/sessions/a`, { method: 'DELETE' })).status).toBe(204);

  child.kill('SIGTERM');
  expect(await closed).toEqual([0, null]);
  expect(stderr).toBe('');
});
