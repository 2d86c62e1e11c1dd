/** The hash of a file as hubs list it. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { RemoteFile } from './listing.js';

export async function digest(path: string, algorithm: RemoteFile['hash']['algorithm'], signal?: AbortSignal): Promise<string> {
  const hash = createHash(algorithm === 'sha256' ? 'sha256' : 'sha1');
  // Git hashes a header before the content.
  if (algorithm === 'git-sha1') hash.update(`blob ${(await stat(path)).size}\0`);
  for await (const part of createReadStream(path, { highWaterMark: 1 << 20, signal })) hash.update(part as Buffer);
  return hash.digest('hex');
}
