/** What must not happen over a long life: leaks, hangs, a process that ends with one of its threads. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import { Model } from '../../lib/index.js';
import { nano, root } from '../helpers/files.js';

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function untilIdle(model: Model): Promise<void> {
  const deadline = performance.now() + 10_000;
  for (let stats = model.stats(); stats.running + stats.waiting > 0; stats = model.stats()) {
    expect(performance.now()).toBeLessThan(deadline);
    await pause(5);
  }
}

/** Numbers that are the same in every run. */
function* numbers(): Generator<number> {
  for (let state = 1; ; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    yield state / 2 ** 32;
  }
}

describe('a long life', () => {
  test('1,000 generations with random aborts leave pages and memory where they began', { timeout: 240_000 }, async () => {
    const model = await Model.load(nano, { maxNumSeqs: 8 });
    const random = numbers();
    const next = () => random.next().value as number;
    const one = async () => {
      const controller = new AbortController();
      const prompt = Array.from({ length: 1 + Math.floor(next() * 300) }, () => Math.floor(next() * 6000));
      const generation = model.generate({
        prompt,
        maxTokens: 1 + Math.floor(next() * 24),
        ignoreEos: true,
        signal: controller.signal,
      });
      const way = next();
      if (way < 0.3) setTimeout(() => controller.abort(), next() * 30);
      else if (way < 0.5) for await (const _ of generation) if (next() < 0.3) break;
      return generation.result.then(
        () => 'ended',
        (error: Error) => error.name,
      );
    };
    const many = async (count: number) => {
      const names = new Set<string>();
      for (let i = 0; i < count; i += 10)
        for (const name of await Promise.all(Array.from({ length: 10 }, one))) names.add(name);
      await untilIdle(model);
      return names;
    };
    const memory = async () => {
      for (let i = 0; i < 3; i++) {
        globalThis.gc?.();
        await pause(20);
      }
      return process.memoryUsage.rss();
    };
    expect(globalThis.gc).toBeDefined();
    // The first rounds fill the pools that are kept: V8's code and heap, the allocator's arenas.
    await many(200);
    const before = { pages: model.stats().freePages, rss: await memory() };
    expect(await many(1000)).toEqual(new Set(['ended', 'AbortError']));
    const after = { pages: model.stats().freePages, rss: await memory() };
    expect(after.pages).toBe(before.pages);
    expect(model.stats()).toMatchObject({ heldPages: 0, freePages: model.stats().totalPages });
    expect((after.rss - before.rss) / 2 ** 20).toBeLessThan(16);
    await model.dispose();
  });

  test('loading and disposing again and again frees the memory', { timeout: 120_000 }, async () => {
    const cycle = async () => {
      const model = await Model.load(nano);
      await model.generate({ prompt: [1, 2, 3], maxTokens: 2 }).result;
      await model.dispose();
      globalThis.gc?.();
    };
    for (let i = 0; i < 5; i++) await cycle();
    const before = process.memoryUsage.rss();
    for (let i = 0; i < 15; i++) await cycle();
    // One leaked model would be 30 MB or more.
    expect((process.memoryUsage.rss() - before) / 2 ** 20).toBeLessThan(60);
  });

  test('a worker thread that is terminated in the middle of an answer leaves the process alive', {
    timeout: 60_000,
  }, async () => {
    const library = join(root, 'dist/index.js');
    expect(existsSync(library), 'dist/index.js is missing: npm run build:lib').toBe(true);
    const source = `
      const { parentPort } = require('node:worker_threads');
      import(${JSON.stringify(pathToFileURL(library).href)}).then(async ({ Model }) => {
        const model = await Model.load(${JSON.stringify(nano)});
        for await (const chunk of model.generate({ prompt: [1, 2, 3], ignoreEos: true })) parentPort.postMessage(chunk.tokens.length);
      });`;
    const model = await Model.load(nano);
    for (let i = 0; i < 4; i++) {
      const worker = new Worker(source, { eval: true });
      await new Promise<void>((resolve, reject) => {
        worker.on('error', reject);
        let tokens = 0;
        worker.on('message', (count: number) => {
          tokens += count;
          if (tokens > 3 + 5 * i) resolve();
        });
      });
      const here = model.generate({ prompt: [1, 2, 3], maxTokens: 20, ignoreEos: true });
      expect(await worker.terminate()).toBe(1);
      expect((await here.result).usage.completionTokens).toBe(20);
    }
    await model.dispose();
  });

  test('an idle model and an idle tokenizer thread do not keep a process alive', { timeout: 60_000 }, async () => {
    const { spawnSync } = await import('node:child_process');
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
