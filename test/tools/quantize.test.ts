/** `quantize`: what it writes, what it refuses, and how it goes on after a run that was ended. The bits: test/native/test_quantize.cpp. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, statSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { beforeAll, describe, expect, test } from 'vitest';
import { inspect, Model, quantize } from '../../lib/index.js';
import { ended, main, sigmoe } from '../cli/run.js';
import { folderWith, nano, root } from '../helpers/files.js';
import { float32Folder, INDEX, readTensors, SHARDS } from './folders.js';

let source = '';
beforeAll(() => {
  source = float32Folder();
});

const target = (): string => join(folderWith({}), 'made');

async function answers(path: string): Promise<{ tokens: number[]; logits: Float32Array }> {
  await using model = await Model.load(path, { compute: 'float32', threads: 1 });
  const messages = [{ role: 'user' as const, content: 'What is asthma?' }];
  const ids = await model.tokenizer.encodeChat(messages, { addGenerationPrompt: true });
  const { tokens } = await model.generate({ prompt: ids, temperature: 0, repetitionPenalty: 1, maxTokens: 16 }).result;
  return { tokens, logits: await model.logits(ids) };
}

function distance(a: Float32Array, b: Float32Array): number {
  let error = 0;
  let norm = 0;
  b.forEach((value, i) => {
    error += ((a[i] ?? Number.NaN) - value) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(error / norm);
}

describe('what it makes', () => {
  test('an FP8 copy that loads and answers as its source does, with everything beside the weights', async () => {
    const to = target();
    const progress: number[] = [];
    const report = await quantize(source, to, { onProgress: ({ bytesDone }) => progress.push(bytesDone) });
    expect(report).toMatchObject({ format: 'fp8', unchanged: false, keptShards: 0, to });
    expect(readdirSync(to).sort()).toEqual(readdirSync(source).sort());
    expect(existsSync(`${to}.partial`)).toBe(false);
    expect(JSON.parse(readFileSync(join(to, 'config.json'), 'utf8'))).toEqual(
      JSON.parse(readFileSync(join(nano, 'config.json'), 'utf8')),
    );
    expect((await inspect(to)).weightFormat).toBe('FP8 blocks');
    const { metadata, weight_map } = JSON.parse(readFileSync(join(to, INDEX), 'utf8'));
    const tensors = SHARDS.flatMap((file) =>
      [...readTensors(join(to, file))].map(([name, tensor]) => ({ name, file, tensor })),
    );
    expect(weight_map).toEqual(Object.fromEntries(tensors.map(({ name, file }) => [name, file])));
    expect(metadata.total_size).toBe(tensors.reduce((sum, { tensor }) => sum + tensor.bytes.length, 0));
    for (const { name, tensor } of tensors) {
      const width = { F32: 4, BF16: 2, F8_E4M3: 1 }[tensor.dtype] ?? Number.NaN;
      expect(tensor.bytes.byteOffset % width, `${name} is aligned`).toBe(0);
    }
    expect(progress.at(-1)).toBe(report.sourceBytes);
    expect(progress).toEqual([...progress].sort((a, b) => a - b));
    const kinds = report.errors.map(({ kind }) => kind);
    expect(kinds).toContain('mlp.experts.*.gate_proj');
    expect(report.errors.find(({ kind }) => kind === 'mlp.experts.*.gate_proj')?.tensors).toBe(16 * 6);
    // Where scales are rounded to powers of two, weights that were FP8 before are rounded once more.
    for (const { mean, worst } of report.errors) expect([mean <= worst, worst < 0.04]).toEqual([true, true]);
    const [made, before] = [await answers(to), await answers(source)];
    expect(distance(made.logits, before.logits)).toBeLessThan(0.04);
    expect(made.tokens[0]).toBe(before.tokens[0]);
  });

  test('an INT8 copy, in the layout of compressed-tensors, that loads and answers likewise', async () => {
    const to = target();
    const report = await quantize(source, to, { format: 'int8', threads: 1 });
    expect((await inspect(to)).weightFormat).toBe('INT8 per channel');
    expect(JSON.parse(readFileSync(join(to, 'config.json'), 'utf8')).quantization_config).toMatchObject({
      quant_method: 'compressed-tensors',
      format: 'int-quantized',
      config_groups: { group_0: { weights: { num_bits: 8, type: 'int', strategy: 'channel', symmetric: true } } },
    });
    const tensors = readTensors(join(to, SHARDS[0]));
    const weight = [...tensors.keys()].find((name) => name.endsWith('down_proj.weight')) ?? '';
    const [rows = 0] = tensors.get(weight)?.shape ?? [];
    expect(tensors.get(weight)?.dtype).toBe('I8');
    expect(tensors.get(`${weight}_scale`)).toMatchObject({ dtype: 'F32', shape: [rows, 1] });
    expect(report.bytes).toBeLessThan(report.sourceBytes / 2);
    expect(distance((await answers(to)).logits, (await answers(source)).logits)).toBeLessThan(0.04);
  });

  test('a checkpoint that has the format is copied byte for byte', async () => {
    const to = target();
    const report = await quantize(nano, to);
    expect(report).toMatchObject({ unchanged: true, errors: [] });
    for (const file of [...SHARDS, 'config.json', 'tokenizer.json']) {
      expect(readFileSync(join(to, file)).equals(readFileSync(join(nano, file))), file).toBe(true);
    }
  });
});

describe('what it refuses', () => {
  test('a target that exists, before anything is written', async () => {
    const to = folderWith({ 'mine.txt': 'mine' });
    await expect(quantize(source, to)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', argument: 'to' });
    expect(readdirSync(to)).toEqual(['mine.txt']);
    await expect(quantize(source, source)).rejects.toMatchObject({ argument: 'to' });
  });

  test('another format of the same checkpoint, wrong options, a folder that is no model', async () => {
    await expect(quantize(nano, target(), { format: 'int8' })).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED' });
    await expect(quantize(source, target(), { format: 'int3' as 'int8' })).rejects.toMatchObject({ argument: 'format' });
    await expect(quantize(source, target(), { threads: -1 })).rejects.toMatchObject({ argument: 'threads' });
    await expect(quantize('', target())).rejects.toMatchObject({ argument: 'from' });
    await expect(quantize(folderWith({}), target())).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' });
  });

  test('a second process while the first is at work', async () => {
    const to = target();
    let second: Promise<unknown> | undefined;
    await quantize(source, to, {
      onProgress: () => {
        second ??= quantize(source, to).then(
          () => 'done',
          (error: unknown) => error,
        );
      },
    });
    const outcome = await second;
    // It came while the first was at work, or, on a slow machine, planned so long that the result was there.
    expect(outcome).toMatchObject({ code: expect.stringMatching(/^ERR_(BUSY|INVALID_ARGUMENT)$/) });
    expect((await inspect(to)).weightFormat).toBe('FP8 blocks');
  });
});

describe('a run that was ended', () => {
  test('by its signal: says what is kept; called again it goes on, and verifies what it kept', async () => {
    const to = target();
    const controller = new AbortController();
    const first = quantize(source, to, {
      signal: controller.signal,
      onProgress: ({ shardsDone }) => {
        if (shardsDone === 1) controller.abort();
      },
    });
    await expect(first).rejects.toMatchObject({ name: 'AbortError', message: expect.stringContaining('.partial') });
    expect(existsSync(to)).toBe(false);
    expect(readdirSync(`${to}.partial`)).toContain(SHARDS[0]);
    expect(readdirSync(`${to}.partial`).some((name) => name.endsWith('.new'))).toBe(false);
    await expect(quantize(source, to, { format: 'int8' })).rejects.toThrow('another quantisation');
    const report = await quantize(source, to);
    expect(report.keptShards).toBe(1);
    const whole = await quantize(source, target());
    expect(report.shards).toEqual(whole.shards);
    expect(report.errors).toEqual(whole.errors);
  });

  test('by a kill: nothing that is not whole is kept', async () => {
    const to = target();
    const child = spawn(process.execPath, [main, 'quantize', source, to, '--threads', '1'], { cwd: root });
    const end = ended(child);
    while (!existsSync(`${to}.partial/${SHARDS[0]}`) && child.exitCode === null) await setTimeout(10);
    child.kill('SIGKILL');
    await end;
    // The kill may come after the last rename on a fast machine; then there is nothing to go on with.
    if (existsSync(to)) return expect((await inspect(to)).weightFormat).toBe('FP8 blocks');
    const report = await quantize(source, to);
    const whole = await quantize(source, target());
    expect(report.shards).toEqual(whole.shards);
  });

  test('a kept shard that was damaged meanwhile is made again; a changed source is not gone on with', async () => {
    const to = target();
    const stopAfter = async (shards: number) => {
      const controller = new AbortController();
      const stopped = quantize(source, to, {
        signal: controller.signal,
        onProgress: ({ shardsDone }) => shardsDone === shards && controller.abort(),
      });
      await expect(stopped).rejects.toThrow('aborted');
    };
    await stopAfter(1);
    const kept = join(`${to}.partial`, SHARDS[0]);
    const bytes = readFileSync(kept);
    bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1;
    writeFileSync(kept, bytes);
    const { keptShards, shards } = await quantize(source, to);
    expect(keptShards).toBe(0);
    expect(shards).toEqual((await quantize(source, target())).shards);

    const changed = float32Folder();
    const other = target();
    const controller = new AbortController();
    const stopped = quantize(changed, other, {
      signal: controller.signal,
      onProgress: ({ shardsDone }) => shardsDone === 1 && controller.abort(),
    });
    await expect(stopped).rejects.toThrow('aborted');
    utimesSync(join(changed, SHARDS[1]), 1, 1);
    await expect(quantize(changed, other)).rejects.toThrow('the source has changed');
  });
});

test('memory stays bounded whatever the size of a shard', async () => {
  // 400 MB of zeros that take no room on the disk; what is written of them is a quarter.
  const peak = async (megabytes: number): Promise<number> => {
    const folder = sparseFolder(megabytes);
    const to = target();
    const script = `
      import { quantize } from ${JSON.stringify(join(root, 'dist/index.js'))};
      await quantize(${JSON.stringify(folder)}, ${JSON.stringify(to)}, { threads: 2 });
      console.log(process.resourceUsage().maxRSS);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    let printed = '';
    child.stdout.on('data', (data) => {
      printed += String(data);
    });
    await once(child, 'close');
    return Number(printed) / 1024;
  };
  const [little, much] = [await peak(8), await peak(400)];
  expect(little).toBeGreaterThan(10);
  expect(much - little).toBeLessThan(48);
});

/** A one-layer float32 checkpoint whose dense MLP takes about this many megabytes, in one file. */
function sparseFolder(megabytes: number): string {
  const [hidden, width] = [1024, Math.ceil((megabytes * 1e6) / (3 * 1024 * 4) / 128) * 128];
  const config = {
    ...JSON.parse(readFileSync(join(nano, 'config.json'), 'utf8')),
    ...{ num_hidden_layers: 1, num_nextn_predict_layers: 0, hidden_size: hidden, intermediate_size: width, vocab_size: 128 },
    eos_token_id: 0,
    quantization_config: null,
  };
  const at = 'model.layers.0.';
  const shapes: Record<string, number[]> = {
    'model.word_embeddings.weight': [128, hidden],
    'model.norm.weight': [hidden],
    'lm_head.weight': [128, hidden],
    [`${at}input_layernorm.weight`]: [hidden],
    [`${at}post_attention_layernorm.weight`]: [hidden],
    [`${at}attention.query_layernorm.weight`]: [128],
    [`${at}attention.key_layernorm.weight`]: [128],
    [`${at}attention.query_key_value.weight`]: [6 * 128, hidden],
    [`${at}attention.dense.weight`]: [hidden, 4 * 128],
    [`${at}mlp.gate_proj.weight`]: [width, hidden],
    [`${at}mlp.up_proj.weight`]: [width, hidden],
    [`${at}mlp.down_proj.weight`]: [hidden, width],
  };
  let end = 0;
  const header: Record<string, unknown> = {};
  for (const [name, shape] of Object.entries(shapes)) {
    const begin = end;
    end += 4 * shape.reduce((product, size) => product * size, 1);
    header[name] = { dtype: 'F32', shape, data_offsets: [begin, end] };
  }
  const text = JSON.stringify(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const folder = folderWith({ 'config.json': config });
  const file = join(folder, 'model.safetensors');
  writeFileSync(file, Buffer.concat([length, Buffer.from(text)]));
  truncateSync(file, statSync(file).size + end);
  return folder;
}

test('the command: a table of errors, JSON, one line on failure', async () => {
  const to = target();
  const made = await sigmoe(['quantize', source, to, '--threads', '2']);
  expect(made.status).toBe(0);
  for (const words of ['mean error', 'mlp.experts.*.gate_proj', 'attention.dense']) expect(made.stdout).toContain(words);
  const again = await sigmoe(['quantize', source, to]);
  expect(again).toMatchObject({ status: 1, stdout: '' });
  expect(again.stderr).toMatch(/^sigmoe: ERR_INVALID_ARGUMENT: to: .* exists - .*\n$/);
  const { stdout, status } = await sigmoe(['quantize', nano, target(), '--json']);
  expect({ status, report: JSON.parse(stdout) }).toMatchObject({ status: 0, report: { unchanged: true, format: 'fp8' } });
  const help = await sigmoe(['quantize', '--help']);
  expect(help.stdout).toContain('Example:');
});
