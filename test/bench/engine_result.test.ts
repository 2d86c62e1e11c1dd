import { describe, expect, it } from 'vitest';
import { type EngineResult, report } from '../../lib/cli/commands/bench/engine_result.js';

function result(rows: EngineResult['rows']): EngineResult {
  return { machine: { name: 'a GPU', device: 'cuda', threads: 1, kernels: 'sm_90' }, shape: 'nano', rows };
}

describe('the table of bench decode, prefill and kernels', () => {
  const kernels = [{ name: 'few_kernel<2>', launches: 2, milliseconds: 0.01 }];
  const fallback = 'no stream_gemm: k 192 is no multiple of 128';
  const choice = { op: 'experts', kernel: 'gemm_few' };

  it('names the kernel that was chosen', () => {
    const text = report(result([{ phase: 'kernels', part: 'experts', kernels, choices: [{ ...choice, rows: 1 }] }]));
    expect(text).toContain('gemm_few:');
    expect(text).not.toContain('fallback');
  });

  it('has a line for each fallback, once for all numbers of rows', () => {
    const of = (rows: number) => ({
      phase: 'kernels' as const,
      part: 'experts',
      kernels,
      choices: [{ ...choice, rows, fallback }],
    });
    const lines = report(result([of(16), of(8), of(16)])).split('\n');
    expect(lines.filter((line) => line.startsWith('fallback: '))).toEqual([
      `fallback: experts by gemm_few, ${fallback} (8, 16 rows)`,
    ]);
  });

  it('is as ever for a device that chooses nothing', () => {
    const text = report(result([{ phase: 'decode', part: 'whole', batch: 1, milliseconds: 2 }]));
    expect(text).toContain('nano on a GPU, sm_90');
    expect(text).not.toContain('kernels ');
  });
});
