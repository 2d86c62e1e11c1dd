import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { folderWith, nano } from '../helpers/files.js';
import { sigmoe } from './run.js';

describe('inspect', () => {
  test('--json gives the facts of the folder', async () => {
    const { stdout, stderr, status } = await sigmoe(['inspect', nano, '--json']);
    const facts = JSON.parse(stdout);
    expect({ stderr, status }).toEqual({ stderr: '', status: 0 });
    expect(facts).toMatchObject({
      architecture: 'BailingMoeV2ForCausalLM',
      context: 2048,
      vocabSize: 6144,
      shape: {
        hiddenSize: 256,
        layers: 6,
        denseLayers: 1,
        mtpLayers: 1,
        heads: 4,
        kvHeads: 1,
        headDim: 128,
        experts: 16,
        activeExperts: 4,
      },
      // Tensor bytes of the two shards: 12,910,592 of FP8, 3,307,776 in BF16, 884 scales in F32.
      memory: { checkpointBytes: 12_910_592 + 3_307_776 * 2 + 884 * 4 },
    });
    const parts: { part: string; parameters: number }[] = facts.parameters.parts;
    const withoutMtp = parts.filter(({ part }) => !/mtp/i.test(part)).reduce((sum, { parameters }) => sum + parameters, 0);
    expect(withoutMtp).toBe(facts.parameters.total);
    expect(facts.parameters.active).toBeLessThan(facts.parameters.total);
    // K and V of one head of 128 in each of six layers, in BF16.
    expect(facts.memory.kvBytesPerToken).toBe(2 * 128 * 6 * 2);
    expect(facts.fit.sequences.at(-1)).toMatchObject({ context: 2048, count: Math.floor(facts.fit.kvTokens / 2048) });
  });

  test('as text names the same', async () => {
    const { stdout } = await sigmoe(['inspect', nano]);
    for (const words of [
      'BailingMoeV2ForCausalLM',
      '2,048 tokens',
      '4 of 16 a token + 1 shared',
      'active per token',
      'sequences of 2,048',
    ]) {
      expect(stdout).toContain(words);
    }
  });
});

test('devices lists the CPU as available', async () => {
  const { stdout } = await sigmoe(['devices', '--json']);
  expect(JSON.parse(stdout)).toContainEqual({ device: 'cpu', available: true, detail: expect.any(String) });
});

describe('bench', () => {
  test('measures a shape beside its bounds, on the screen and in a file', async () => {
    const output = join(folderWith({}), 'result.json');
    const result = await sigmoe([
      'bench',
      '--shape',
      'nano',
      '--repeats',
      '1',
      '--prefill',
      '64',
      '--json',
      '--output',
      output,
    ]);
    expect(result.status).toBe(0);
    const record = JSON.parse(result.stdout);
    expect(JSON.parse(readFileSync(output, 'utf8'))).toEqual(record);
    expect(record.machine.readGbps).toBeGreaterThan(0);
    expect(record.command).toContain('bench --shape nano');
    const whole = record.rows.filter(({ part }: { part: string }) => part === 'whole');
    expect(whole.map(({ phase }: { phase: string }) => phase)).toEqual(expect.arrayContaining(['decode', 'prefill']));
    for (const row of whole) expect(row.tokensPerSecond).toBeGreaterThan(0);
  });
});
