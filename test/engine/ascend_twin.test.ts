/**
 * Device names of Ascend: what happens without its software, and the bundled model on the CPU twin of its kernels. The twin is
 * built by the C++ tests: stage `ascend` of npm test runs this file with its library.
 */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { devices, Model, NotFoundError, selftest } from '../../lib/index.js';
import { complaints, sigmoe } from '../cli/run.js';
import { type GreedyPrompt, golden, nano } from '../helpers/files.js';

const library = process.env.SIGMOE_ASCEND_TWIN_LIBRARY ?? '';
const twin = existsSync(library);
if (!twin) console.log('ascend-twin: skipped here, SIGMOE_ASCEND_TWIN_LIBRARY names no library; npm test has a stage for it');

describe('a machine without Ascend software', () => {
  test('lists ascend with the libraries it looked for, and a load that names it fails with what to install', async () => {
    const ascend = devices().find(({ device }) => device === 'ascend');
    if (ascend === undefined || ascend.available) return expect(ascend?.detail).toContain('experimental');
    for (const name of ['libascendcl.so', 'libhccl.so', 'libopapi.so', 'libsigmoe_ascend_kernels.so'])
      expect(ascend.detail).toContain(`${name}: not found`);
    const failure = await Model.load(nano, { device: 'ascend' }).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(NotFoundError);
    expect(String(failure)).toMatch(/device 'ascend' asked for: libascendcl\.so was not found.*: install the Ascend driver/s);
  });

  test('auto never picks the twin', () => {
    const names = devices().map(({ device }) => device);
    expect(names.slice(0, 3)).toEqual(['cuda', 'ascend', 'cpu']);
    expect(names.slice(3)).toEqual(twin ? ['ascend-twin'] : []);
  });
});

describe.skipIf(!twin)('the bundled model on the twin', () => {
  const { prompts } = JSON.parse(readFileSync(golden('nano/greedy.json'), 'utf8')) as { prompts: GreedyPrompt[] };
  const [{ question, greedy_text }] = prompts as [GreedyPrompt];
  const greedy = ['--temperature', '0', '--repetition-penalty', '1', '--max-tokens', '24', '--max-model-len', '512'];

  test('sigmoe generate answers as the golden does', { timeout: 120_000 }, async () => {
    const result = await sigmoe(['generate', nano, question, '--device', 'ascend-twin', '--compute', 'float32', ...greedy]);
    expect(complaints(result)).toEqual([]);
    expect(result.status).toBe(0);
    expect(result.stdout.trim().length).toBeGreaterThan(20);
    expect(greedy_text.startsWith(result.stdout.trim())).toBe(true);
  });

  test('int8 says what keeping the weights in eight bits cost', { timeout: 120_000 }, async () => {
    await using model = await Model.load(nano, { device: 'ascend-twin', compute: 'int8', maxModelLen: 256 });
    expect(model.info.weightFormat).toMatch(/kept as INT8, added error mean \d\.\d\d%, worst \d\.\d\d% \(model\.layers\./);
    const { tokens, finishReason } = await model.generate({ prompt: 'Fever', maxTokens: 8, temperature: 0 }).result;
    expect(tokens.length).toBe(finishReason === 'length' ? 8 : tokens.indexOf(model.info.vocabSize - 1) + 1);
  });

  test.each(['bfloat16', 'int8'] as const)('passes its self-test in %s', { timeout: 120_000 }, async (compute) => {
    await using model = await Model.load(nano, { device: 'ascend-twin', compute });
    const report = await selftest(model);
    expect(report.problems.concat(...report.cases.map(({ problems }) => problems))).toEqual([]);
    expect(report.passed).toBe(true);
  });

  test('a warm prefix, neighbours and drafts do not change an answer', { timeout: 120_000 }, async () => {
    const prompt = prompts.map((item) => item.text).join(' '); // longer than a page of 128 tokens
    const request = { prompt, maxTokens: 16, temperature: 0, repetitionPenalty: 1.1 };
    const options = { device: 'ascend-twin', maxModelLen: 512 } as const;
    await using plain = await Model.load(nano, options);
    const first = await plain.generate(request).result;
    const again = await plain.generate(request).result;
    expect(again.usage.cachedTokens).toBeGreaterThanOrEqual(128);
    expect(again.tokens).toEqual(first.tokens);
    const together = await plain.generateBatch([request, { ...request, prompt: 'Fever' }, request]);
    expect(together[0]?.tokens).toEqual(first.tokens);
    expect(together[2]?.tokens).toEqual(first.tokens);
    await using drafting = await Model.load(nano, { ...options, speculative: { method: 'mtp', maxDepth: 3, adaptive: false } });
    const drafted = await drafting.generate(request).result;
    expect(drafted.usage.draftedTokens).toBeGreaterThan(0);
    expect(drafted.tokens).toEqual(first.tokens);
  });
});
