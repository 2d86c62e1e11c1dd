/** Processor, memory and huge pages, as /proc and /sys tell of them. */
import os from 'node:os';
import type { System } from './system.js';
import type { MachineFacts } from './types.js';

/** Of the flags of a processor, those that choose a kernel path (kernels/cpu/cpu_features.cpp). */
const FEATURES = [
  'avx2',
  'fma',
  'avx512f',
  'avx512bw',
  'avx512vl',
  'avx512_bf16',
  'avx512vbmi',
  'amx_tile',
  'amx_bf16',
  'amx_int8',
];

export function readMachine({ read, list }: System): MachineFacts {
  const cpuinfo = read('/proc/cpuinfo') ?? '';
  const flags = new Set(/^(?:flags|Features)\s*:\s*(.*)$/m.exec(cpuinfo)?.[1]?.split(' '));
  const meminfo = read('/proc/meminfo') ?? '';
  return {
    cpu: {
      name: /^model name\s*:\s*(.*)$/m.exec(cpuinfo)?.[1] ?? os.machine(),
      cores: os.availableParallelism(),
      features: FEATURES.filter((feature) => flags.has(feature)),
      numaNodes: list('/sys/devices/system/node').filter((name) => /^node\d+$/.test(name)).length || 1,
    },
    memory: { totalBytes: os.totalmem(), availableBytes: availableBytes() },
    hugePages: {
      transparent: /\[(\w+)\]/.exec(read('/sys/kernel/mm/transparent_hugepage/enabled') ?? '')?.[1] ?? null,
      reserved: kilobytes(meminfo, 'HugePages_Total'),
      free: kilobytes(meminfo, 'HugePages_Free'),
    },
  };
}

/** Memory this process may still take: what the machine has free, or what its container has left. */
function availableBytes(): number {
  return process.availableMemory?.() ?? os.freemem();
}

function kilobytes(meminfo: string, name: string): number {
  return Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(meminfo)?.[1] ?? 0);
}
