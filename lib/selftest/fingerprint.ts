/**
 * What tells one checkpoint from another in a moment, whatever its size: SHA-256 over each weight file's size, header and 256
 * samples of 512 bytes spread over it. It finds other weights, not damage; damage shows in what the model answers.
 */
import { createHash } from 'node:crypto';
import { type FileHandle, open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CheckpointError, NotFoundError } from '../errors.js';

export const SAMPLES = 256;
export const SAMPLE_BYTES = 512;
const MOST_HEADER_BYTES = 128 * 1024 * 1024;

export async function fingerprint(folder: string): Promise<string> {
  const names = (await readdir(folder)).filter((name) => name.endsWith('.safetensors')).sort();
  if (names.length === 0) throw new NotFoundError(`${folder}: no .safetensors file`, 'pass a model folder');
  const hash = createHash('sha256');
  for (const name of names) {
    const file = await open(join(folder, name));
    try {
      const { size } = await file.stat();
      const headerBytes = await readHeaderLength(file, size, join(folder, name));
      hash.update(`${size}\n`).update(await readAt(file, 0, 8 + headerBytes));
      for (const at of samplePlaces(8 + headerBytes, size)) hash.update(await readAt(file, at, SAMPLE_BYTES));
    } finally {
      await file.close();
    }
  }
  return hash.digest('hex');
}

/** Where a file's samples begin. */
export function samplePlaces(dataBegin: number, size: number): number[] {
  const step = (size - dataBegin) / SAMPLES;
  return Array.from({ length: SAMPLES }, (_, i) => dataBegin + Math.floor(i * step));
}

async function readHeaderLength(file: FileHandle, size: number, path: string): Promise<number> {
  const length = size < 8 ? 0n : (await readAt(file, 0, 8)).readBigUInt64LE();
  if (length > 0n && length <= MOST_HEADER_BYTES && 8 + Number(length) <= size) return Number(length);
  throw new CheckpointError(`${path}: not a safetensors file`, 'fetch it again and compare its checksum');
}

async function readAt(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  const { bytesRead } = await file.read(buffer, 0, length, position);
  return buffer.subarray(0, bytesRead);
}
