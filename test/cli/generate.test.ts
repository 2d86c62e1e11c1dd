import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { folderWith, type GreedyPrompt, golden as goldenFile, nano, root } from '../helpers/files.js';
import { complaints, ended, main, NOTICE, sigmoe, start } from './run.js';

const golden = JSON.parse(readFileSync(goldenFile('nano/greedy.json'), 'utf8')) as { prompts: GreedyPrompt[] };
// Greedy as the goldens were made: no penalty, float32.
const exact = ['--temperature', '0', '--repetition-penalty', '1', '--compute', 'float32'];
function goldenCase(index: number) {
  const found = golden.prompts[index];
  if (found === undefined) throw new Error(`no golden prompt ${index}`);
  return { ...found, limit: ['--max-tokens', String(found.greedy_ids.length)] };
}

/** The path of a new file. */
function file(name: string, content: string): string {
  return join(folderWith({ [name]: content }), name);
}

describe('the answer is the golden one', () => {
  const { question, text, greedy_text, greedy_ids, limit } = goldenCase(1);

  test('streamed, with the notice once on stderr and no progress bar in a pipe', async () => {
    const result = await sigmoe(['generate', nano, question, ...exact, ...limit]);
    expect(result).toEqual({ stdout: `${greedy_text}\n`, stderr: `${NOTICE}\n`, status: 0 });
  });

  test('as JSON', async () => {
    const { stdout, status } = await sigmoe(['generate', nano, question, ...exact, ...limit, '--json', '--logprobs', '1']);
    const result = JSON.parse(stdout);
    expect(status).toBe(0);
    expect(result).toMatchObject({ text: greedy_text, finishReason: 'length', usage: { completionTokens: greedy_ids.length } });
    expect(result.tokens).toEqual(greedy_ids);
    expect(result.logprobs).toHaveLength(greedy_ids.length);
    expect(result.logprobs[0]).toMatchObject({ id: greedy_ids[0], top: [{ id: greedy_ids[0] }] });
  });

  test.each([
    ['on standard input', [], `${question}\n`],
    ['on standard input, named', ['-'], question],
    ['in a file', ['--file', file('question.txt', `${question}\n`)], ''],
    ['as a conversation', ['--messages', file('messages.json', JSON.stringify([{ role: 'user', content: question }]))], ''],
    ['raw', ['--raw', text], ''],
  ])('to a prompt %s', async (_, args, input) => {
    expect((await sigmoe(['generate', nano, ...args, ...exact, ...limit], input)).stdout).toBe(`${greedy_text}\n`);
  });

  test('in Chinese, character by character', async () => {
    const chinese = goldenCase(4);
    const { stdout } = await sigmoe(['generate', nano, chinese.question, ...exact, ...chinese.limit]);
    expect(stdout).toBe(`${chinese.greedy_text}\n`);
  });

  test('in a batch, in the order of its lines, flags being the defaults', async () => {
    const other = goldenCase(2);
    const lines = [
      JSON.stringify(question),
      '',
      JSON.stringify({ messages: [{ role: 'user', content: other.question }], maxTokens: 3 }),
    ];
    const result = await sigmoe(['generate', nano, '--batch', file('batch.jsonl', lines.join('\n')), ...exact, ...limit]);
    const answers = result.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(result.status).toBe(0);
    expect(answers.map(({ index, tokens }) => ({ index, tokens }))).toEqual([
      { index: 0, tokens: greedy_ids },
      { index: 1, tokens: other.greedy_ids.slice(0, 3) },
    ]);
  });
});

describe('flags', () => {
  test('--stop ends the text before it', async () => {
    const { question, greedy_text } = goldenCase(1);
    const { stdout } = await sigmoe(['generate', nano, question, ...exact, '--stop', 'glucose']);
    expect(stdout).toBe(`${greedy_text.slice(0, greedy_text.indexOf('glucose'))}\n`);
  });

  test('--seed repeats a sampled answer', async () => {
    const args = [
      'generate',
      nano,
      'What is asthma?',
      '--temperature',
      '1',
      '--seed',
      '12345678901234',
      '--max-tokens',
      '40',
      '--json',
    ];
    const [first, second] = await Promise.all([sigmoe(args), sigmoe(args)]);
    const [a, b] = [JSON.parse(first.stdout), JSON.parse(second.stdout)];
    expect(a.seed).toBe(12345678901234);
    expect(a.tokens).toEqual(b.tokens);
  });

  test('--logit-bias forbids a token', async () => {
    const { question, greedy_ids } = goldenCase(1);
    const [id] = greedy_ids;
    const { stdout } = await sigmoe([
      'generate',
      nano,
      question,
      ...exact,
      '--max-tokens',
      '1',
      '--json',
      '--logit-bias',
      `${id}=-100`,
    ]);
    expect(JSON.parse(stdout).tokens[0]).not.toBe(id);
  });

  test('--stats ends with a line of figures on stderr', async () => {
    const result = await sigmoe(['generate', nano, 'What is asthma?', '--max-tokens', '5', '--stats']);
    expect(complaints(result)).toEqual([
      expect.stringMatching(/^\d+ tokens in .* tokens\/s after a first token at .* ms .*threads$/),
    ]);
  });

  test('--system reaches the template', async () => {
    const args = ['generate', nano, 'What is asthma?', '--max-tokens', '1', '--json'];
    const [without, with_] = await Promise.all([sigmoe(args), sigmoe([...args, '--system', 'Answer in one word.'])]);
    const promptTokens = (stdout: string) => JSON.parse(stdout).usage.promptTokens;
    expect(promptTokens(with_.stdout)).toBeGreaterThan(promptTokens(without.stdout));
  });
});

describe('bad input', () => {
  test.each([
    ['a prompt that is not UTF-8', ['--file', join(nano, 'model-00002-of-00002.safetensors')], 'not UTF-8'],
    ['messages that are not JSON', ['--messages', file('broken.json', '[{')], 'JSON'],
    ['a message of an unknown role', ['--messages', file('role.json', '[{"role":"doctor","content":"x"}]')], 'role'],
    ['a prompt longer than the context', ['--file', file('long.txt', 'headache '.repeat(5000))], 'context'],
    ['an unknown field in a batch', ['--batch', file('unknown.jsonl', '{"prompt":"x","temprature":1}')], 'temprature'],
    ['a batch of numbers', ['--batch', file('numbers.jsonl', '1\n2\n')], 'line 1 is neither'],
    ['an empty batch', ['--batch', file('empty.jsonl', '\n\n')], 'holds no request'],
  ])('%s is one line', async (_, args, words) => {
    const result = await sigmoe(['generate', nano, ...args]);
    expect(complaints(result)).toEqual([expect.stringContaining(words)]);
    expect(result.status).toBe(1);
  });
});

describe('endings', () => {
  const endless = ['generate', nano, 'What is asthma?', '--ignore-eos'];

  test('Ctrl-C stops the answer with status 130 and no complaint', async () => {
    const child = start(endless);
    const result = ended(child);
    await once(child.stdout, 'data');
    child.kill('SIGINT');
    expect(complaints(await result)).toEqual([]);
    expect((await result).status).toBe(130);
  });

  test('Ctrl-C while loading is status 130', async () => {
    const child = start(endless);
    const result = ended(child);
    setTimeout(() => child.kill('SIGINT'), 150); // long enough for the handler, short of the end of the answer
    expect((await result).stderr).not.toContain('sigmoe: ');
    expect([130, null]).toContain((await result).status); // null: the signal came before the handler was there
  });

  test('a reader that leaves ends the command quietly', async () => {
    const child = start(endless);
    const result = ended(child);
    await once(child.stdout, 'data');
    child.stdout.destroy();
    expect(complaints(await result)).toEqual([]);
    expect((await result).status).toBe(141);
  });

  test('a full disk is an error', async () => {
    const child = spawn('sh', ['-c', `exec "$0" "$@" > /dev/full`, process.execPath, main, ...endless], { cwd: root });
    const result = await ended(child);
    expect(complaints(result)).toEqual([expect.stringContaining('could not be written')]);
    expect(result.status).toBe(1);
  });
});
