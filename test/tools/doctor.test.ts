/** The doctor: what it reads of machines that are not here, what it says of this one, and its arithmetic. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { describeFindings, type Facts } from '../../lib/doctor/findings.js';
import { fitOf, listedBandwidth, reachableDtypes, storedDtype } from '../../lib/doctor/fit.js';
import { readGpus } from '../../lib/doctor/gpus.js';
import { findLibraries } from '../../lib/doctor/libraries.js';
import { readMachine } from '../../lib/doctor/machine.js';
import type { System } from '../../lib/doctor/system.js';
import { doctor, inspect, Model, type ModelInfo } from '../../lib/index.js';
import { workspaceOf } from '../../lib/memory_plan.js';
import { sigmoe } from '../cli/run.js';
import { folderWith, nano } from '../helpers/files.js';

/** A machine made of files and of what its programs print. */
function machineOf(files: Record<string, string>, programs: Record<string, string> = {}, env: NodeJS.ProcessEnv = {}): System {
  return {
    read: (path) => files[path],
    list: (path) => [
      ...new Set(
        Object.keys(files)
          .filter((file) => file.startsWith(`${path}/`))
          .map((file) => file.slice(path.length + 1).split('/')[0] ?? ''),
      ),
    ],
    run: async (program, args) => programs[`${program} ${args[0]?.split('=')[0]}`],
    env,
  };
}

const bus = '0000:1b:00.0';
const driver = {
  '/proc/driver/nvidia/version': 'NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\nGCC version: 12',
  [`/proc/driver/nvidia/gpus/${bus}/information`]: 'Model: \t\t NVIDIA H200\nIRQ: 120\nBus Location: 0000:1b:00.0\n',
  [`/sys/bus/pci/devices/${bus}/current_link_speed`]: '32.0 GT/s PCIe\n',
  [`/sys/bus/pci/devices/${bus}/current_link_width`]: '16\n',
};

describe('GPUs', () => {
  test('as nvidia-smi tells of them', async () => {
    const smi = {
      'nvidia-smi --query-gpu':
        'NVIDIA H200, 00000000:1B:00.0, 143771, 143250, 570.86.15\nNVIDIA H200, 00000000:29:00.0, 143771, [N/A], 570.86.15\n',
      'nvidia-smi nvlink': 'GPU 0: NVIDIA H200\n\t Link 0: 26.562 GB/s\n\t Link 1: 26.562 GB/s\n',
    };
    expect(await readGpus(machineOf(driver, smi))).toEqual({
      driver: '570.86.15',
      nvlinks: 2,
      gpus: [
        {
          name: 'NVIDIA H200',
          bus: '00000000:1B:00.0',
          memoryBytes: 143771 * 2 ** 20,
          freeBytes: 143250 * 2 ** 20,
          link: 'PCIe 32.0 GT/s x16',
        },
        { name: 'NVIDIA H200', bus: '00000000:29:00.0', memoryBytes: 143771 * 2 ** 20, freeBytes: null, link: null },
      ],
    });
  });

  test('as the driver alone tells of them, and where there is none', async () => {
    expect(await readGpus(machineOf(driver))).toEqual({
      driver: '570.86.15',
      nvlinks: null,
      gpus: [{ name: 'NVIDIA H200', bus, memoryBytes: null, freeBytes: null, link: 'PCIe 32.0 GT/s x16' }],
    });
    expect(await readGpus(machineOf({}))).toEqual({ driver: null, nvlinks: null, gpus: [] });
    expect(await readGpus(machineOf({}, { 'nvidia-smi --query-gpu': 'NVIDIA-SMI has failed\n' }))).toMatchObject({ gpus: [] });
  });
});

test('processor, huge pages and NUMA nodes', () => {
  const facts = readMachine(
    machineOf({
      '/proc/cpuinfo': 'processor : 0\nmodel name\t: A Processor\nflags\t\t: fpu avx2 fma avx512f amx_bf16 avx512vbmi\n',
      '/proc/meminfo': 'MemTotal: 100 kB\nHugePages_Total:    8\nHugePages_Free:     3\n',
      '/sys/kernel/mm/transparent_hugepage/enabled': 'always [madvise] never\n',
      '/sys/devices/system/node/node0/cpulist': '0',
      '/sys/devices/system/node/node1/cpulist': '1',
      '/sys/devices/system/node/possible': '0-1',
    }),
  );
  expect(facts.cpu).toMatchObject({
    name: 'A Processor',
    features: ['avx2', 'fma', 'avx512f', 'avx512vbmi', 'amx_bf16'],
    numaNodes: 2,
  });
  expect(facts.hugePages).toEqual({ transparent: 'madvise', reserved: 8, free: 3 });
});

test('libraries are looked for where the loader and the toolkits put them', () => {
  const files = { '/opt/nccl/libnccl.so.2': '', '/ascend/lib64/libascendcl.so': '', '/ascend/lib64/libhccl.so': '' };
  const found = findLibraries(machineOf(files, {}, { LD_LIBRARY_PATH: '/none:/opt/nccl', ASCEND_HOME_PATH: '/ascend' }));
  expect(found.map(({ name, path }) => [name, path])).toEqual([
    ['libnccl.so.2', '/opt/nccl/libnccl.so.2'],
    ['libascendcl.so', '/ascend/lib64/libascendcl.so'],
    ['libhccl.so', '/ascend/lib64/libhccl.so'],
    ['libascend_hal.so', null],
  ]);
  expect(findLibraries(machineOf({})).every(({ path }) => path === null)).toBe(true);
});

describe('the findings', () => {
  const facts = (changes: Partial<Facts>): Facts => ({
    machine: {
      cpu: { name: 'A Processor', cores: 4, features: ['avx2'], numaNodes: 1 },
      memory: { totalBytes: 64e9, availableBytes: 60e9 },
      hugePages: { transparent: 'always', reserved: 0, free: 0 },
    },
    gpu: { gpus: [], driver: null, nvlinks: null },
    libraries: findLibraries(machineOf({})),
    addon: { path: '/p/sigmoe.node', kind: 'prebuilt', reason: 'because' },
    cache: { path: '/c', freeBytes: 1e12 },
    node: 'v20.0.0',
    devices: [
      { device: 'cuda', available: false, detail: 'not installed' },
      { device: 'cpu', available: true, detail: 'A Processor' },
    ],
    trial: 'passes',
    works: true,
    ...changes,
  });
  const of = (changes: Partial<Facts>, topic: string) =>
    describeFindings(facts(changes)).find((finding) => finding.topic === topic);

  test('say what the driver runs and what it is too old for', () => {
    const gpus = [{ name: 'G', bus: 'b', memoryBytes: 8e9, freeBytes: 8e9, link: null }];
    const driverOf = (version: string) => of({ gpu: { gpus, driver: version, nvlinks: null } }, 'NVIDIA driver');
    expect(driverOf('580.65')).toMatchObject({ status: 'ok', detail: '580.65: runs CUDA 12 and CUDA 13 builds' });
    expect(driverOf('550.54')?.detail).toBe('550.54: runs CUDA 12 builds; CUDA 13 needs branch 580 or newer');
    expect(driverOf('470.10')).toMatchObject({ status: 'note', detail: expect.stringContaining('no builds') });
    expect(of({}, 'NVIDIA driver')?.detail).toBe('not found');
  });

  test('are bad only where the default device does not work', () => {
    expect(describeFindings(facts({})).filter(({ status }) => status === 'bad')).toEqual([]);
    expect(of({ works: false, trial: 'wrong tokens' }, 'default device')).toMatchObject({
      status: 'bad',
      detail: 'cpu: wrong tokens',
    });
    expect(of({ devices: [] }, 'default device')?.status).toBe('bad');
  });
});

describe('the fit', () => {
  // Ling-flash-2.0 by its published sizes.
  const flash = {
    weightFormat: 'BF16',
    context: 32_768,
    vocabSize: 157184,
    shape: {
      hiddenSize: 4096,
      layers: 32,
      denseLayers: 1,
      mtpLayers: 0,
      heads: 32,
      kvHeads: 4,
      headDim: 128,
      experts: 256,
      activeExperts: 8,
      sharedExperts: 1,
    },
    parameters: {
      total: 102_889_697_280,
      active: 4_864_344_064,
      parts: Object.entries({
        embedding: 643_825_664,
        head: 643_825_664,
        attention: 1_207_959_552,
        'dense MLP': 113_246_208,
        'routed experts': 99_857_989_632,
        'shared experts': 390_070_272,
        router: 32_505_856,
        norms: 274_432,
        MTP: 0,
      }).map(([part, parameters]) => ({ part, parameters })),
    },
    memory: { checkpointBytes: 0, weightBytes: 0, kvBytes: 0, kvBytesPerToken: 65536, workspaceBytes: 0 },
  } as unknown as ModelInfo;

  test('of the full model agrees with the published bytes and ceilings', () => {
    const h200 = listedBandwidth('NVIDIA H200');
    const onH200 = { device: 'cuda', availableBytes: 150e9, bandwidth: h200 } as const;
    const fp8 = fitOf(flash, 'fp8', 4096, onH200);
    const bf16 = fitOf(flash, 'bf16', 4096, onH200);
    expect(bf16.weightBytes / 1e9).toBeCloseTo(205.78, 1);
    expect(fp8.weightBytes / 1e9).toBeCloseTo(104.2, 1);
    expect([fp8.fits, bf16.fits, fp8.stored, bf16.stored]).toEqual([true, false, false, true]);
    expect(fp8.kvBytes).toBe(4096 * 65536);
    // 6.19 and 11.02 GB of weights a token, and 0.27 GB of cache: 744 and 425 tokens/s.
    expect((fp8.bytesPerToken - fp8.kvBytes) / 1e9).toBeCloseTo(6.19, 1);
    expect((bf16.bytesPerToken - bf16.kvBytes) / 1e9).toBeCloseTo(11.02, 1);
    expect(fp8.tokensPerSecond).toBeCloseTo(744, -1);
    expect(bf16.tokensPerSecond).toBeCloseTo(425, -1);
    expect(fitOf(flash, 'fp8', 4096, { ...onH200, bandwidth: null }).tokensPerSecond).toBeNull();
  });

  test('is for the step that a load would choose there', () => {
    const fit = (device: 'cuda' | 'cpu', availableBytes: number) =>
      fitOf(flash, 'fp8', 4096, { device, availableBytes, bandwidth: null });
    const { weightBytes, kvBytes, workspaceBytes, maxBatchedTokens } = fit('cuda', 150e9);
    expect(maxBatchedTokens).toBe(8192);
    expect(workspaceBytes).toBe(workspaceOf(flash, 8192, 32));
    const room = weightBytes + kvBytes + 3 * workspaceBytes;
    expect(fit('cuda', room + 1).maxBatchedTokens).toBe(8192);
    expect(fit('cuda', room - 1e6)).toMatchObject({ maxBatchedTokens: 4096, fits: true });
    expect(fit('cuda', 0)).toMatchObject({ maxBatchedTokens: 512, fits: false });
    expect(fit('cpu', 150e9)).toMatchObject({ maxBatchedTokens: 512, workspaceBytes: workspaceOf(flash, 512, 32) });
  });

  test('lists no bandwidth for a GPU it does not know', () => {
    expect(listedBandwidth('NVIDIA H100 80GB HBM3')).toEqual({ gbps: 3350, source: 'listed' });
    expect(listedBandwidth('NVIDIA H20')?.gbps).toBe(4000);
    for (const name of ['NVIDIA H100 PCIe', 'NVIDIA A100 80GB PCIe', 'Tesla T4']) expect(listedBandwidth(name)).toBeNull();
  });

  test('knows what a format is and what quantize makes of it', () => {
    expect(['FP8 blocks', 'INT8 per channel', 'INT4 groups', 'F32', 'BF16'].map(storedDtype)).toEqual([
      'fp8',
      'int8',
      'int4',
      'float32',
      'bf16',
    ]);
    expect(reachableDtypes('bf16')).toEqual(['bf16', 'fp8', 'int8']);
    expect(reachableDtypes('fp8')).toEqual(['fp8']);
  });

  test('of the bundled model is what loading it takes', async () => {
    await using model = await Model.load(nano, { threads: 1 });
    const { memory, context, limits } = model.info;
    const device = model.info.device.name === 'cuda' ? 'cuda' : 'cpu';
    const fit = fitOf(await inspect(nano), 'fp8', context, { device, availableBytes: 1e12, bandwidth: null });
    expect(fit.maxBatchedTokens).toBe(limits.maxBatchedTokens);
    expect(fit.weightBytes / memory.weightBytes).toBeGreaterThan(0.97);
    expect(fit.weightBytes / memory.weightBytes).toBeLessThan(1.03);
    expect(fit.workspaceBytes / memory.workspaceBytes).toBeGreaterThan(0.5);
    expect(fit.workspaceBytes / memory.workspaceBytes).toBeLessThan(2);
  });
});

describe('this machine', () => {
  test('works, with a model that fits and a bound from a measured bandwidth', async () => {
    const report = await doctor({ model: nano, context: 1024 });
    expect(report).toMatchObject({ ok: true, node: process.version });
    expect(report.findings.every(({ status }) => status !== 'bad')).toBe(true);
    expect(report.findings[0]?.detail).toContain('passes its self-test');
    expect(report.addon.path).toMatch(/\.node$/);
    const [row] = report.fit?.rows ?? [];
    expect(row).toMatchObject({ dtype: 'fp8', stored: true, fits: true, kvBytes: 1024 * 2 * 128 * 6 * 2 });
    if (report.device === 'cpu') expect(report.fit?.bandwidth?.source).toBe('measured');
    if (report.fit?.bandwidth) {
      expect(row?.tokensPerSecond).toBeCloseTo((report.fit.bandwidth.gbps * 1e9) / (row?.bytesPerToken ?? 0), 3);
    }
  });

  test('wrong options are refused by name', async () => {
    await expect(doctor({ context: 0 })).rejects.toMatchObject({ argument: 'context' });
    await expect(doctor({ dtype: 'fp7' as 'fp8' })).rejects.toMatchObject({ argument: 'dtype' });
    await expect(doctor({ model: nano, context: 4096 })).rejects.toMatchObject({ argument: 'context' });
    await expect(doctor({ model: join(folderWith({}), 'none') })).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' });
  });

  test('the command prints a table, and the same as JSON', async () => {
    const { stdout, status, stderr } = await sigmoe(['doctor', nano, '--dtype', 'int8']);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    for (const words of [
      'default device',
      'processor',
      'huge pages',
      'NVIDIA driver',
      'Ascend',
      'model cache',
      'addon',
      'fits',
    ]) {
      expect(stdout).toContain(words);
    }
    const json = await sigmoe(['doctor', '--json']);
    expect(JSON.parse(json.stdout)).toMatchObject({ ok: true, device: expect.any(String) });
  });
});
