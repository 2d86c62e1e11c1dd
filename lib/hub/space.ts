/** Room on the disk that a path is on, or will be. */
import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';

export async function freeBytes(path: string): Promise<number> {
  for (let folder = path; ; folder = dirname(folder)) {
    try {
      const { bavail, bsize } = await statfs(folder);
      return bavail * bsize;
    } catch (error) {
      if (folder === dirname(folder)) throw error;
    }
  }
}
