import { cpSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { expect, test } from 'vitest';
import { folderWith, nano } from '../helpers/files.js';
import { sigmoe } from './run.js';

test('--help lists every command', async () => {
  const { stdout, status } = await sigmoe(['--help']);
  expect(status).toBe(0);
  for (const command of ['generate', 'chat', 'inspect', 'bench', 'devices']) expect(stdout).toContain(command);
});

test('--version is that of the package', async () => {
  expect((await sigmoe(['--version'])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
});

// Every failure is one line that says what is wrong; 2 for a command that cannot be understood, 1 for one that failed.
test.each([
  ['an unknown command', ['serv'], 2, "unknown command 'serv'"],
  ['an unknown option', ['generate', nano, 'x', '--temprature', '0'], 2, 'Did you mean --temperature?'],
  ['an absent argument', ['inspect'], 2, "missing required argument 'model'"],
  ['text for a number', ['generate', nano, 'x', '--top-p', 'high'], 2, '"high" is not a number'],
  ['a contradiction', ['generate', nano, 'x', '--raw', '--system', 'y'], 2, 'exclude each other'],
  ['an empty prompt', ['generate', nano, ' '], 2, 'the prompt is empty'],
  ['a prompt file that is not there', ['generate', nano, '--file', '/no/such'], 1, 'no such file'],
  ['a model that is not there', ['generate', '/no/such', 'x'], 1, '/no/such'],
  ['a model that is not there', ['inspect', '/no/such'], 1, '/no/such'],
  ['a model that is not there', ['chat', '/no/such'], 1, '/no/such'],
  ['a model that is not there', ['bench', '/no/such'], 1, '/no/such'],
  ['a folder that holds no model', ['generate', tmpdir(), 'x'], 1, 'config.json'],
  ['a value out of range', ['generate', nano, 'x', '--temperature', '-1'], 1, 'temperature'],
  ['an infinite value', ['generate', nano, 'x', '--top-p', '1e999'], 1, 'topP'],
  ['an unknown device', ['generate', nano, 'x', '--device', 'tpu'], 1, 'tpu'],
  ['an unknown kernel path', ['generate', nano, 'x', '--kernels', 'mmx'], 1, 'mmx'],
  ['an unknown type of attention', ['generate', nano, 'x', '--prefill-attention', 'int4'], 1, 'prefillAttention'],
  ['a bench of what the CPU has not', ['bench', nano, '--device', 'cpu', '--prefill-attention', 'fp8'], 1, 'in fp8'],
  ['a batch file with a broken line', ['generate', nano, '--batch', 'README.md'], 1, 'line 1 is not JSON'],
  ['a bench of nothing', ['bench'], 2, 'a model folder or a --shape'],
  ['a bench of an unknown shape', ['bench', '--shape', 'huge'], 1, 'huge'],
] as const)('%s fails in one line: %j', async (_, args, status, words) => {
  const result = await sigmoe([...args]);
  const lines = result.stderr.split('\n').filter((line) => line.startsWith('sigmoe: '));
  expect(lines).toHaveLength(1);
  expect(lines[0]).toContain(words);
  expect(result.stderr).not.toContain('    at ');
  expect(result.stdout).toBe('');
  expect(result.status).toBe(status);
});

test('--verbose adds where the error came from', async () => {
  expect((await sigmoe(['generate', '/no/such', 'x', '--verbose'])).stderr).toContain('    at ');
});

test('a notice that cannot be read fails the command', async () => {
  const folder = folderWith({ 'sigmoe.json': { notice: 3 } });
  cpSync(nano, folder, { recursive: true, filter: (path) => !path.endsWith('sigmoe.json') });
  const { stderr, status } = await sigmoe(['generate', folder, 'x', '--max-tokens', '1']);
  expect(status).toBe(1);
  expect(stderr).toContain('holds no text field "notice"');
});
