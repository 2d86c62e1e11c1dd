/** The programs of examples/ run, and the bodies in the docs of structured output are answered as they say. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { createClient } from '../../lib/index.js';
import { nano, root } from '../helpers/files.js';
import { serving } from './serving.js';

interface Ended {
  stdout: string;
  stderr: string;
  status: number | null;
}

/** Not spawnSync: the server that an example talks to runs in this process. */
function run(example: string, argument: string): Promise<Ended> {
  const child = spawn(process.execPath, [join(root, 'examples', example), argument], { cwd: root });
  const ended: Ended = { stdout: '', stderr: '', status: null };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    ended.stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    ended.stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status) => resolve({ ...ended, status }));
  });
}

const done = { stderr: '', status: 0 };

test('generate', async () => {
  const { stdout, ...rest } = await run('generate.mjs', nano);
  expect(rest).toEqual(done);
  expect(stdout).toMatch(/\[\d+ tokens, ended by (length|stop)\]/);
  expect(stdout).toMatch(/severity: '(mild|moderate|severe)'/);
});

test('tool calls', async () => {
  const { stdout, ...rest } = await run('tool_calls.mjs', nano);
  expect(rest).toEqual(done);
  expect(stdout).toMatch(/^largest_dose\((ibuprofen|paracetamol)\) = \d+ mg a day\n./);
});

test('server client', async () => {
  const { url } = await serving();
  const { stdout, ...rest } = await run('server_client.mjs', url);
  expect(rest).toEqual(done);
  expect(stdout).toMatch(/^> What is hypertension\?\n.+\n\n> How is it treated\?\n./s);
});

test('the bodies in docs/structured-output.md', async () => {
  const page = readFileSync(join(root, 'docs/structured-output.md'), 'utf8');
  const bodies: { messages: object[] }[] = [...page.matchAll(/```json\n([\s\S]*?)```/g)].map(([, body = '']) =>
    JSON.parse(body),
  );
  const client = createClient((await serving()).model);
  const texts: string[] = [];
  for (const body of bodies) {
    const { choices } = await client.chat.completions.create({ ...body, max_tokens: 300, seed: 1 });
    expect(choices[0]?.finish_reason).toBe('stop');
    texts.push(choices[0]?.message.content ?? '');
  }
  const [patient = '', choice, date, number] = texts;
  expect(JSON.parse(patient)).toEqual({ age: expect.any(Number), drugs: expect.any(Array) });
  expect(['yes', 'no', '不知道']).toContain(choice);
  expect(date).toMatch(/^\d{4}-\d{2}-\d{2}$/);
  expect(number).toMatch(/^[0-9]{1,3}( 左右)?$/);
});
