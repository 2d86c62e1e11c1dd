/** Facts to the lines of the table: what each means, and what to do about it. */
import type { DeviceStatus } from '../types.js';
import { DRIVER_FLOORS } from './gpus.js';
import type { DoctorReport, Finding, Gpu, GpuFacts, LibraryFacts } from './types.js';

export interface Facts extends Pick<DoctorReport, 'machine' | 'gpu' | 'libraries' | 'addon' | 'cache' | 'node'> {
  devices: DeviceStatus[];
  /** What the bundled model did on the default device. */
  trial: string;
  works: boolean;
}

const LITTLE_SPACE_BYTES = 20e9;

export function describeFindings(facts: Facts): Finding[] {
  const { machine, devices, gpu, libraries, addon, cache } = facts;
  const { cpu, memory, hugePages } = machine;
  const chosen = devices.find(({ available }) => available);
  const features = cpu.features.length > 0 ? cpu.features.join(' ') : 'none of the vector extensions that have kernels';
  const nodes = cpu.numaNodes > 1 ? `, ${cpu.numaNodes} NUMA nodes` : '';
  const pages = hugePages.reserved > 0 ? `, ${hugePages.free} of ${hugePages.reserved} reserved ones free` : '';
  return [
    chosen === undefined
      ? line('default device', 'bad', 'none is available')
      : line('default device', facts.works ? 'ok' : 'bad', `${chosen.device}: ${facts.trial}`),
    line(
      'processor',
      cpu.features.includes('avx2') ? 'ok' : 'note',
      `${cpu.name}, ${count(cpu.cores, 'core')}${nodes}: ${features}`,
    ),
    line('memory', 'ok', `${gigabytes(memory.availableBytes)} of ${gigabytes(memory.totalBytes)} available`),
    line(
      'huge pages',
      hugePages.transparent === 'never' ? 'note' : 'ok',
      `transparent: ${hugePages.transparent ?? 'not supported'}${pages}`,
    ),
    ...gpu.gpus.map((each, i) => line(`GPU ${i}`, 'ok', describeGpu(each))),
    driverLine(gpu),
    ...(gpu.gpus.length > 1 ? [linksLine(gpu)] : []),
    ...devices
      .filter(({ device }) => device !== 'cpu')
      .map(({ device, available, detail }) => line(`${device} backend`, available ? 'ok' : 'note', detail)),
    ...libraryLines(libraries, gpu),
    cache.freeBytes === null
      ? line('model cache', 'note', `${cache.path}: its disk does not answer`)
      : line(
          'model cache',
          cache.freeBytes < LITTLE_SPACE_BYTES ? 'note' : 'ok',
          `${gigabytes(cache.freeBytes)} free at ${cache.path}`,
        ),
    line('addon', 'ok', `${addon.kind}, ${addon.path}: ${addon.reason}`),
    line('Node', 'ok', facts.node),
  ];
}

function driverLine({ driver, gpus }: GpuFacts): Finding {
  if (driver === null) return line('NVIDIA driver', 'note', 'not found');
  const branch = Number.parseInt(driver, 10);
  const runs = DRIVER_FLOORS.filter((floor) => branch >= floor.branch).map(({ cuda }) => `CUDA ${cuda}`);
  const next = DRIVER_FLOORS.find((floor) => branch < floor.branch);
  const lacks = next === undefined ? '' : `; CUDA ${next.cuda} needs branch ${next.branch} or newer`;
  const status = runs.length > 0 && gpus.length > 0 ? 'ok' : 'note';
  return line('NVIDIA driver', status, `${driver}: runs ${runs.length > 0 ? runs.join(' and ') : 'no'} builds${lacks}`);
}

function linksLine({ nvlinks, gpus }: GpuFacts): Finding {
  if (nvlinks === null) return line('links', 'note', `${gpus.length} GPUs; nvidia-smi does not tell how they are linked`);
  return line('links', nvlinks > 0 ? 'ok' : 'note', nvlinks > 0 ? `${nvlinks} NVLinks` : 'no NVLink: GPUs talk over PCIe');
}

/** A library is worth a line where something would use it. */
function libraryLines(libraries: LibraryFacts[], gpu: GpuFacts): Finding[] {
  const [nccl, ...ascend] = libraries;
  const lines: Finding[] = [];
  if (nccl !== undefined) {
    const missing = `not found${gpu.gpus.length > 1 ? '; several GPUs of one model need it' : ', and not needed for one GPU'}`;
    lines.push(line('NCCL', nccl.path === null && gpu.gpus.length > 1 ? 'note' : 'ok', nccl.path ?? missing));
  }
  const found = ascend.filter(({ path }) => path !== null);
  const text =
    found.length > 0 ? found.map(({ path }) => path).join(', ') : `none of ${ascend.map(({ name }) => name).join(', ')}`;
  const partial = found.length > 0 && found.length < ascend.length;
  const absent = ascend.filter(({ path }) => path === null).map(({ name }) => name);
  return [
    ...lines,
    line('Ascend libraries', partial ? 'note' : 'ok', partial ? `${text}; not found: ${absent.join(', ')}` : text),
  ];
}

function describeGpu({ name, memoryBytes, freeBytes, link, bus }: Gpu): string {
  const memory = memoryBytes === null ? '' : `, ${gigabytes(freeBytes ?? memoryBytes)} of ${gigabytes(memoryBytes)} free`;
  return `${name}${memory}, ${link ?? 'link unknown'}, ${bus}`;
}

function line(topic: string, status: Finding['status'], detail: string): Finding {
  return { topic, status, detail };
}

function gigabytes(value: number): string {
  return `${(value / 1e9).toFixed(value < 1e10 ? 1 : 0)} GB`;
}

function count(n: number, what: string): string {
  return `${n} ${what}${n === 1 ? '' : 's'}`;
}
