/**
 * NVIDIA GPUs and their driver: nvidia-smi where there is one, else what the driver says in /proc. Neither needs our CUDA library,
 * so that a machine on which it does not load is told why.
 */
import type { System } from './system.js';
import type { Gpu, GpuFacts } from './types.js';

/** Oldest branch of the Linux driver that runs programs of a CUDA major version. */
export const DRIVER_FLOORS = [
  { cuda: 12, branch: 525 },
  { cuda: 13, branch: 580 },
] as const;

const QUERY = ['name', 'pci.bus_id', 'memory.total', 'memory.free', 'driver_version'] as const;
const MIB = 1024 * 1024;

export async function readGpus(system: System): Promise<GpuFacts> {
  const version = /Kernel Module\D*([\d.]+)/.exec(system.read('/proc/driver/nvidia/version') ?? '')?.[1] ?? null;
  const printed = await system.run('nvidia-smi', [`--query-gpu=${QUERY.join(',')}`, '--format=csv,noheader,nounits']);
  if (printed === undefined) return { gpus: fromDriver(system), driver: version, nvlinks: null };
  const rows = printed
    .split('\n')
    .filter((line) => line.split(',').length === QUERY.length)
    .map((line) => line.split(',').map((word) => word.trim()));
  const gpus = rows.map(([name = '', bus = '', total, free]) => ({
    name,
    bus,
    memoryBytes: mebibytes(total),
    freeBytes: mebibytes(free),
    link: linkOf(system, bus),
  }));
  const links = await system.run('nvidia-smi', ['nvlink', '--status']);
  const nvlinks = links === undefined ? null : [...links.matchAll(/Link \d+: [\d.]+ GB\/s/g)].length;
  return { gpus, driver: rows[0]?.[4] ?? version, nvlinks };
}

function fromDriver(system: System): Gpu[] {
  const folder = '/proc/driver/nvidia/gpus';
  return system.list(folder).map((bus) => {
    const text = system.read(`${folder}/${bus}/information`) ?? '';
    const name = /^Model:\s*(.*)$/m.exec(text)?.[1] ?? 'a GPU';
    return { name, bus, memoryBytes: null, freeBytes: null, link: linkOf(system, bus) };
  });
}

/** nvidia-smi writes the PCI domain with eight digits, /sys with four. */
function linkOf({ read }: System, bus: string): string | null {
  const folder = `/sys/bus/pci/devices/${bus.toLowerCase().replace(/^[0-9a-f]{4}(?=[0-9a-f]{4}:)/, '')}`;
  const speed = /^[\d.]+ GT\/s/.exec(read(`${folder}/current_link_speed`) ?? '')?.[0];
  const width = Number(read(`${folder}/current_link_width`));
  return speed === undefined || !(width > 0) ? null : `PCIe ${speed} x${width}`;
}

function mebibytes(text: string | undefined): number | null {
  const value = Number(text);
  return text === undefined || text === '' || Number.isNaN(value) ? null : value * MIB;
}
