/** What must not happen over a long life: leaks, hangs, a process that ends with one of its threads. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, test } from 'vitest';
import type { ModelStats } from '../../lib/index.js';
import { nano, root } from '../helpers/files.js';

interface Measured {
  stats: ModelStats;
  heapMiB: number;
  rssMiB: number;
}

/** Runs a script of test/helpers on the built library in a process of its own; its last line is JSON. */
function runScript(name: string, ...args: string[]): unknown {
  const script = join(root, 'test/helpers', name);
  const { stdout, stderr, status } = spawnSync(process.execPath, ['--expose-gc', script, nano, ...args], { timeout: 240_000 });
  expect({ status, stderr: String(stderr) }).toEqual({ status: 0, stderr: '' });
  return JSON.parse(String(stdout).trim().split('\n').at(-1) ?? '');
}

describe('a long life', () => {
  test('1,000 generations with random aborts leave pages and memory where they began', { timeout: 250_000 }, () => {
    const { before, after, ends } = runScript('random_aborts.mjs') as {
      before: Measured;
      after: Measured;
      ends: Record<string, number>;
    };
    expect(Object.keys(ends).sort()).toEqual(['AbortError', 'abort', 'length']);
    expect(Math.min(...Object.values(ends))).toBeGreaterThan(50);
    for (const { stats } of [before, after]) {
      expect(stats).toMatchObject({ heldPages: 0, running: 0, waiting: 0 });
      expect(stats.freePages + stats.cachedPages).toBe(stats.totalPages);
    }
    expect(after.stats.totalPages).toBe(before.stats.totalPages);
    expect(after.heapMiB - before.heapMiB).toBeLessThan(2);
    expect(after.rssMiB - before.rssMiB).toBeLessThan(12);
  });

  test('loading and disposing again and again frees the memory', { timeout: 120_000 }, () => {
    const { before, after } = runScript('load_dispose.mjs') as { before: Measured; after: Measured };
    // Twenty leaked models would be 300 MiB of weights alone.
    expect(after.rssMiB - before.rssMiB).toBeLessThan(30);
  });

  // In a process of its own: what these workers must not end is the process.
  test.each([
    ['loads', 'load', 8],
    ['generates', 'generate', 25],
    ['submits and aborts', 'submit', 8],
    ['asks for statistics', 'inspect', 25],
  ])('worker threads terminated while one %s leave the process alive', { timeout: 250_000 }, (_, work, count) => {
    expect(runScript('terminated_workers.mjs', work, String(count))).toEqual({ terminated: count, tokens: 20 * count });
  });

  test('an idle model and an idle tokenizer thread do not keep a process alive', { timeout: 60_000 }, async () => {
    const source = `
      import { Model } from ${JSON.stringify(pathToFileURL(join(root, 'dist/index.js')).href)};
      const model = await Model.load(${JSON.stringify(nano)});
      const { tokens } = await model.generate({ prompt: 'x '.repeat(1000), maxTokens: 2, ignoreEos: true }).result;
      const ids = await model.tokenizer.encodeAsync('a headache '.repeat(5000));
      console.log(tokens.length, ids.length > 5000);`;
    const { stdout, stderr, status } = spawnSync(process.execPath, ['--input-type=module', '-e', source], { timeout: 30_000 });
    expect({ status, stdout: String(stdout), stderr: String(stderr) }).toEqual({ status: 0, stdout: '2 true\n', stderr: '' });
  });
});
