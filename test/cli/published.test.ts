/** The command lines that AntAngelMed's card publishes, as they stand but for the folder, its context and the machine. */
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { createInterface } from 'node:readline';
import { afterEach, expect, test } from 'vitest';
import { nano } from '../helpers/files.js';
import { ended, sigmoe, start } from './run.js';

const started: ChildProcessWithoutNullStreams[] = [];
afterEach(() => {
  for (const child of started.splice(0)) child.kill('SIGKILL');
});

const here = ['--device', 'cpu', '--threads', '1', '--port', '0'];
const a100 = [
  ...['--model', nano, '--tensor-parallel-size', '4', '--max-num-seqs', '200', '--gpu-memory-utilization', '0.97'],
  ...['--served-model-name', 'AntAngelMed', '--max-model-len', '2048', '--port', '8080', '--trust-remote-code'],
];
const ascend = [
  ...['--model', nano, '--tensor-parallel-size', '4', '--data-parallel-size', '2', '--max-num-seqs=200'],
  ...['--enable_expert_parallel', '--gpu_memory_utilization', '0.97', '--served-model-name', 'AntAngelMed'],
  ...['--max-model-len', '2048', '--port', '8080', '--enable-prefix-caching', '--block-size', '128'],
  ...['--async-scheduling', '--trust_remote_code'],
];

test.each([
  { name: 'A100: four ranks', args: a100, copies: 1 },
  { name: 'Ascend: four ranks with whole experts, twice', args: ascend, copies: 2 },
])('$name', async ({ args, copies }) => {
  const child = start(['serve', ...args, ...here]);
  started.push(child);
  const end = ended(child);
  const url = await Promise.race([
    new Promise<string>((resolve) => createInterface(child.stdout).once('line', resolve)),
    end.then(({ stderr }) => Promise.reject(new Error(stderr))),
  ]);
  const ask = async (content: string) => {
    const messages = [{ role: 'user', content }];
    const body = JSON.stringify({ model: 'AntAngelMed', messages, temperature: 0, max_tokens: 8, ignore_eos: true });
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      body,
      headers: { 'content-type': 'application/json' },
    });
    expect(response.status).toBe(200);
    return (await response.json()) as {
      choices: { message: { content: string; reasoning?: string } }[];
      usage: { prompt_tokens: number; prompt_tokens_details?: { cached_tokens: number } };
    };
  };
  // One long text, again and again: every copy but the first would have to read it anew.
  const long = 'Breathing, pulse and temperature were measured again, and again they were as they should be. '.repeat(12);
  const answers = [];
  for (let i = 0; i < 4; i++) answers.push(await ask(long));
  expect(new Set(answers.map(({ choices }) => JSON.stringify(choices))).size).toBe(1);
  const metrics = await (await fetch(`${url}/metrics`)).text();
  const figure = (name: string) => Number(new RegExp(`^sigmoe:${name}(?:\\{[^}]*\\})? (\\S+)$`, 'm').exec(metrics)?.[1]);
  // 200 sequences in each copy, and what any of them counts is in the sum.
  expect(metrics).toContain(`max_num_seqs="${200 * copies}"`);
  const prompt = answers[0]?.usage.prompt_tokens ?? 0;
  expect(figure('prefix_cache_hits_total')).toBe(3 * Math.floor((prompt - 1) / 128) * 128);
  expect(figure('generation_tokens_total')).toBe(4 * 8);
  child.kill('SIGTERM');
  const { status, stderr } = await end;
  expect(status).toBe(0);
  expect(stderr).not.toContain('--enable-expert-parallel changes nothing');
  expect(stderr).not.toContain('measured again');
});

test('inspect shows what each of four ranks would keep', async () => {
  const ranksOf = async (...args: string[]) => {
    const { stdout, status } = await sigmoe(['inspect', nano, '--json', '--tensor-parallel-size', '4', ...args]);
    expect(status).toBe(0);
    return JSON.parse(stdout) as {
      ranks: { weightBytes: number; kvBytesPerToken: number }[];
      memory: { checkpointBytes: number };
    };
  };
  // Experts of 128 channels are one scale block: by width they lie on the first rank, whole ones are spread over all.
  for (const [{ ranks, memory }, most] of [
    [await ranksOf(), 0.9],
    [await ranksOf('--enable-expert-parallel'), 0.5],
  ] as const) {
    expect(ranks).toHaveLength(4);
    const sum = ranks.reduce((total, { weightBytes }) => total + weightBytes, 0);
    expect(sum).toBeGreaterThan(memory.checkpointBytes); // the embedding table is whole on each
    for (const { weightBytes, kvBytesPerToken } of ranks) {
      expect(weightBytes).toBeLessThan(memory.checkpointBytes * most);
      expect(kvBytesPerToken).toBe(2 * 128 * 6 * 2); // one KV head, replicated
    }
  }
  const { stdout } = await sigmoe(['inspect', nano, '--tensor-parallel-size', '2']);
  expect(stdout).toMatch(/^rank +weights +KV cache a token$/m);
  const refused = await sigmoe(['inspect', nano, '--tensor-parallel-size', '3']);
  expect([refused.status, refused.stdout]).toEqual([1, '']);
});
