/** The self-test: the bundled model passes it on every path, a damaged one does not, and `serve --selftest` stands on it. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, expect, test } from 'vitest';
import { type LoadOptions, Model, recordSelftest, type SelftestRecording, selftest } from '../../lib/index.js';
import { samplePlaces } from '../../lib/selftest/fingerprint.js';
import { activationsOf, judge, reducedBound } from '../../lib/selftest/judge.js';
import { keep } from '../../lib/selftest/measure.js';
import { ended, sigmoe, start } from '../cli/run.js';
import { folderWith, type GreedyPrompt, golden, nano } from '../helpers/files.js';
import { nanoCopy, readTensors, SHARDS } from './folders.js';

const shipped = JSON.parse(readFileSync(join(nano, 'selftest.json'), 'utf8')) as SelftestRecording;

async function run(path: string, load: LoadOptions, recording: SelftestRecording = shipped) {
  await using model = await Model.load(path, { threads: 2, ...load });
  return await selftest(model, { recording });
}

/** A copy of the bundled model with some bytes of a tensor changed. */
function damaged(tensor: string, change: (bytes: Buffer) => void): string {
  const folder = nanoCopy();
  for (const file of SHARDS) {
    const path = join(folder, file);
    const found = readTensors(path).get(tensor);
    if (found === undefined) continue;
    const bytes = readFileSync(path);
    const at = found.offset ?? Number.NaN;
    // Not where the fingerprint looks: the test is of answers, not of checksums.
    const dataBegin = 8 + Number(bytes.readBigUInt64LE(0));
    const sampled = samplePlaces(dataBegin, bytes.length).some((place) => place < at + found.bytes.length && place + 512 > at);
    expect(sampled, `${tensor} is not sampled`).toBe(false);
    change(bytes.subarray(at, at + found.bytes.length));
    writeFileSync(path, bytes);
    return folder;
  }
  throw new Error(`no tensor ${tensor}`);
}

describe('the bundled model', () => {
  test('its recording holds what the publisher computed', () => {
    const { prompts } = JSON.parse(readFileSync(golden('nano/greedy.json'), 'utf8')) as { prompts: GreedyPrompt[] };
    let compared = 0;
    for (const { question, prompt, tokens } of shipped.cases) {
      const publisher = prompts.find((each) => each.question === question);
      if (publisher === undefined) continue;
      compared++;
      expect(prompt).toEqual(publisher.prompt_ids);
      expect(tokens).toEqual(publisher.greedy_ids.slice(0, tokens.length));
    }
    expect(compared).toBeGreaterThanOrEqual(2);
  });

  test.each(['generic', 'auto'] as const)(
    'passes exactly in float32 and within the error of BF16, kernels %s',
    async (kernels) => {
      const exact = await run(nano, { compute: 'float32', kernels });
      expect(exact).toMatchObject({ passed: true, rule: 'exact', problems: [] });
      for (const { sameTokens, tokens, worstError } of exact.cases) {
        expect(sameTokens).toBe(tokens);
        expect(worstError).toBeLessThan(1e-5);
      }
      expect(await run(nano, { kernels })).toMatchObject({ passed: true, rule: 'reduced' });
    },
  );

  test('recorded anew, it gives the same tokens and fingerprint, and scores that agree', async () => {
    const again = await recordSelftest(nano, { threads: 2 });
    expect(again.fingerprint).toBe(shipped.fingerprint);
    expect(again.cases.map(({ prompt, tokens }) => ({ prompt, tokens }))).toEqual(
      shipped.cases.map(({ prompt, tokens }) => ({ prompt, tokens })),
    );
    expect(await run(nano, { compute: 'float32' }, again)).toMatchObject({ passed: true });
  });
});

describe('a damaged model', () => {
  test('fails in float32 and in BF16, though its fingerprint is the same', async () => {
    const folder = damaged('model.layers.2.input_layernorm.weight', (bytes) => bytes.fill(0));
    for (const compute of ['float32', 'bfloat16'] as const) {
      const report = await run(folder, { compute });
      expect(report).toMatchObject({ passed: false, problems: [] });
      expect(report.cases.some(({ problems }) => problems.some((problem) => problem.includes('positions are off')))).toBe(true);
    }
  });

  test('fails when one scale of one block is doubled', async () => {
    const folder = damaged('model.layers.3.attention.dense.weight_scale_inv', (bytes) => {
      bytes.writeFloatLE(2 * bytes.readFloatLE(0), 0);
    });
    for (const compute of ['float32', 'bfloat16'] as const) expect((await run(folder, { compute })).passed).toBe(false);
  });

  test('of other weights is told apart before anything runs', async () => {
    const folder = nanoCopy();
    const path = join(folder, SHARDS[0]);
    const bytes = readFileSync(path);
    const [, place = 0] = samplePlaces(8 + Number(bytes.readBigUInt64LE(0)), bytes.length);
    bytes[place] = (bytes[place] ?? 0) ^ 1;
    writeFileSync(path, bytes);
    expect(await run(folder, {})).toMatchObject({
      passed: false,
      cases: [],
      problems: [expect.stringContaining('other weights')],
    });
  });
});

describe('the judgement', () => {
  const logits = Float32Array.from({ length: 64 }, (_, id) => Math.sin(id) * 4);
  const best = keep(logits).ids[0] ?? -1;
  const second = keep(logits).ids[1] ?? -1;
  const recorded = { question: 'q', prompt: [1], tokens: [best], scores: [keep(logits)] };
  const bfloat16 = { kernels: 'k', medianError: 0.01, worstError: 0.1, beyondBound: 0 };
  const off = (by: number) => logits.map((value, id) => value + (id % 2 === 0 ? by : -by));

  test('keeps the best tokens, best first', () => {
    const sorted = [...logits.keys()].sort((a, b) => (logits[b] ?? 0) - (logits[a] ?? 0));
    expect(keep(logits).ids.slice(0, 8)).toEqual(sorted.slice(0, 8));
  });

  test('exact: 1e-4 and the same tokens', () => {
    expect(judge(recorded, { tokens: [best], logits: [off(1e-4)] }, 'exact', bfloat16, 'wide').passed).toBe(true);
    expect(judge(recorded, { tokens: [best], logits: [off(1e-3)] }, 'exact', bfloat16, 'wide').passed).toBe(false);
    expect(judge(recorded, { tokens: [second], logits: [logits] }, 'exact', bfloat16, 'wide').passed).toBe(false);
  });

  test('reduced: a few positions beyond the bound, none beyond the worst', () => {
    const many = (n: number, beyond: number) => ({
      recorded: { ...recorded, tokens: Array(n).fill(best), scores: Array(n).fill(keep(logits)) },
      measured: { tokens: Array(n).fill(best), logits: Array.from({ length: n }, (_, i) => off(i < beyond ? 0.3 : 0.02)) },
    });
    expect(reducedBound(bfloat16, 'wide')).toBeCloseTo(0.025, 10);
    expect(judge(many(20, 3).recorded, many(20, 3).measured, 'reduced', bfloat16, 'wide').passed).toBe(true);
    expect(judge(many(20, 4).recorded, many(20, 4).measured, 'reduced', bfloat16, 'wide').passed).toBe(false);
    expect(judge(recorded, { tokens: [best], logits: [off(2)] }, 'reduced', bfloat16, 'wide').passed).toBe(false);
    const tie = { tokens: [best], logits: [off(0.8)] };
    expect(judge(recorded, tie, 'reduced', bfloat16, 'wide').passed).toBe(false);
    expect(judge(recorded, tie, 'reduced', { ...bfloat16, nearTieError: 0.2 }, 'wide').passed).toBe(true);
    expect(judge(recorded, tie, 'reduced', { ...bfloat16, nearTieError: 0.1 }, 'wide').passed).toBe(false);
    expect(
      judge(recorded, { tokens: [best], logits: [logits.map(() => Number.NaN)] }, 'reduced', bfloat16, 'wide').passed,
    ).toBe(false);
  });

  test('reduced: activations of 8 bits may be off by what their rounding costs', () => {
    const nano = { ...bfloat16, medianError: 0.0016, worstError: 0.0247, nearTieError: 0.0613 };
    expect(reducedBound(nano, 'wide')).toBeCloseTo(0.0082, 10);
    expect(reducedBound(nano, 'fp8')).toBe(0.08);
    expect(reducedBound(nano, 'int8')).toBe(0.04);
    expect(reducedBound({ ...nano, medianError: 0.05 }, 'fp8')).toBeCloseTo(0.105, 10);
    expect(reducedBound(null, 'wide')).toBe(0.04);
    const many = { ...recorded, tokens: Array(24).fill(best), scores: Array(24).fill(keep(logits)) };
    const by = (error: number) => ({ tokens: Array(24).fill(best), logits: Array(24).fill(off(error)) });
    const rounded = by(0.05);
    expect(judge(many, rounded, 'reduced', nano, 'fp8').medianError).toBeGreaterThan(0.0082);
    expect(judge(many, rounded, 'reduced', nano, 'fp8').passed).toBe(true);
    expect(judge(many, rounded, 'reduced', nano, 'wide').passed).toBe(false);
    expect(judge(many, by(0.3), 'reduced', nano, 'fp8').problems.join()).toContain('median');
  });

  test('which devices round activations', () => {
    const info = (kernels: string, compute: string, weightFormat: string) => ({
      device: {
        name: 'd',
        description: 'd',
        reason: 'r',
        kernels,
        compute,
        kvCacheDtype: 'bfloat16',
        prefillAttention: 'bfloat16',
        threads: 1,
      },
      weightFormat,
    });
    expect(activationsOf(info('sm_90', 'bfloat16', 'FP8 blocks'))).toBe('fp8');
    expect(activationsOf(info('sm_90', 'bfloat16', 'BF16'))).toBe('wide');
    expect(activationsOf(info('sm_80', 'bfloat16', 'FP8 blocks'))).toBe('wide');
    expect(activationsOf(info('exact', 'float32', 'FP8 blocks'))).toBe('wide');
    expect(activationsOf(info('amx', 'bfloat16', 'FP8 blocks'))).toBe('wide');
    expect(activationsOf(info('ascend910b', 'int8', 'FP8 blocks'))).toBe('int8');
  });

  test('reduced: another token only where the scores are closer than what was measured', () => {
    const gap = (logits[best] ?? 0) - (logits[second] ?? 0);
    const near = judge(
      recorded,
      { tokens: [second], logits: [off(gap * 0.6)] },
      'reduced',
      { ...bfloat16, medianError: 1 },
      'wide',
    );
    expect(near.passed).toBe(true);
    const far = judge(
      recorded,
      { tokens: [second], logits: [off(gap * 0.4)] },
      'reduced',
      { ...bfloat16, medianError: 1 },
      'wide',
    );
    expect(far.problems.join()).toContain('apart');
    expect(judge(recorded, { tokens: [], logits: [logits] }, 'reduced', bfloat16, 'wide').passed).toBe(false);
  });
});

test('a recording that is none, or does not fit, is an error that says so', async () => {
  await using model = await Model.load(nano, { threads: 1, maxModelLen: 32 });
  await expect(selftest(model)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', argument: 'maxModelLen' });
  const file = (content: string) => join(folderWith({ 'r.json': content }), 'r.json');
  for (const content of ['{', '{}', '[]', JSON.stringify({ ...shipped, cases: [{ ...shipped.cases[0], scores: [] }] })]) {
    await expect(selftest(model, { recording: file(content) })).rejects.toMatchObject({ code: 'ERR_BAD_CHECKPOINT' });
  }
  await expect(selftest(model, { recording: '/no/such/file' })).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' });
});

describe('the commands', () => {
  test('selftest: status 0 and a table, status 1 and one line', async () => {
    const good = await sigmoe(['selftest', nano, '--threads', '1']);
    expect(good.status).toBe(0);
    expect(good.stdout).toContain('24 of 24');
    const folder = damaged('model.layers.1.post_attention_layernorm.weight', (bytes) => bytes.fill(0));
    writeFileSync(join(folder, 'selftest.json'), JSON.stringify(shipped));
    const bad = await sigmoe(['selftest', folder, '--json', '--threads', '1']);
    expect(bad.status).toBe(1);
    expect(JSON.parse(bad.stdout)).toMatchObject({ passed: false });
    expect(bad.stderr).toMatch(/sigmoe: the self-test failed: .*positions are off/);
  });

  test('serve --selftest serves a model that passes', async () => {
    const child = start(['serve', nano, '--selftest', '--port', '0', '--threads', '1']);
    const end = ended(child);
    const url = await new Promise<string>((resolve) => createInterface(child.stdout).once('line', resolve));
    expect((await fetch(`${url}/health`)).status).toBe(200);
    child.kill('SIGTERM');
    const { stderr, status } = await end;
    expect({ status, passed: stderr.includes('self-test passed') }).toEqual({ status: 0, passed: true });
  });

  test('serve --selftest refuses one that does not', async () => {
    const folder = damaged('model.layers.1.post_attention_layernorm.weight', (bytes) => bytes.fill(0));
    const recording = join(folderWith({ 'r.json': JSON.stringify(shipped) }), 'r.json');
    const { stdout, stderr, status } = await sigmoe([
      'serve',
      folder,
      '--selftest',
      recording,
      '--port',
      '0',
      '--threads',
      '1',
    ]);
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toContain('the self-test failed');
  });
});
