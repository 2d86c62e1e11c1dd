/** Float32 tensors of a safetensors file, by name. */
import { readFileSync } from 'node:fs';

export function readSafetensors(path: string): Map<string, Float32Array> {
  const file = readFileSync(path);
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes)) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, Float32Array>();
  for (const [name, { dtype, data_offsets }] of Object.entries(header)) {
    if (dtype !== 'F32') continue;
    const [start, end] = data_offsets.map((offset) => 8 + headerBytes + offset);
    tensors.set(name, new Float32Array(new Uint8Array(file.subarray(start, end)).buffer));
  }
  return tensors;
}
