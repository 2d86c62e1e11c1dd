/** Libraries of others that a backend opens at run time: where they are looked for, and what was found. */
import { join } from 'node:path';
import type { System } from './system.js';
import type { LibraryFacts } from './types.js';

const SYSTEM_FOLDERS = ['/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/usr/lib64', '/usr/lib', '/usr/local/lib'];
const CUDA_FOLDERS = ['/usr/local/cuda/lib64'];

/** NCCL joins several NVIDIA GPUs; the other three are the runtime, the collectives and the driver of Ascend. */
export function findLibraries(system: System): LibraryFacts[] {
  const ascend = ascendFolders(system);
  return [
    look(system, 'libnccl.so.2', [...SYSTEM_FOLDERS, ...CUDA_FOLDERS]),
    look(system, 'libascendcl.so', ascend),
    look(system, 'libhccl.so', ascend),
    look(system, 'libascend_hal.so', ['/usr/local/Ascend/driver/lib64/driver', '/usr/local/Ascend/driver/lib64']),
  ];
}

function ascendFolders({ env }: System): string[] {
  const homes = [
    env.SIGMOE_ASCEND_HOME,
    env.ASCEND_HOME_PATH,
    env.ASCEND_TOOLKIT_HOME,
    '/usr/local/Ascend/ascend-toolkit/latest',
  ];
  return homes.filter((home) => home !== undefined && home !== '').map((home) => join(String(home), 'lib64'));
}

function look(system: System, name: string, folders: string[]): LibraryFacts {
  const path = (system.env.LD_LIBRARY_PATH ?? '').split(':').filter((folder) => folder !== '');
  const lookedIn = [...new Set([...path, ...folders])];
  const folder = lookedIn.find((candidate) => system.list(candidate).includes(name));
  return { name, path: folder === undefined ? null : join(folder, name), lookedIn };
}
