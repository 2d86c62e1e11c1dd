/** Model folders in float32, made of the bundled model: its FP8 codes times their scales. */
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { folderWith, nano } from '../helpers/files.js';

export interface Tensor {
  dtype: string;
  shape: number[];
  bytes: Buffer;
  /** In its file; of tensors that were read. */
  offset?: number;
}

export function readTensors(path: string): Map<string, Tensor> {
  const file = readFileSync(path);
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, Tensor>();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const [begin, end] = data_offsets.map((at) => 8 + headerBytes + at);
    tensors.set(name, { dtype, shape, bytes: file.subarray(begin, end), offset: begin ?? 0 });
  }
  return tensors;
}

export function writeTensors(path: string, tensors: Map<string, Tensor>): void {
  let at = 0;
  const header: Record<string, unknown> = {};
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [at, at + bytes.length] };
    at += bytes.length;
  }
  let text = JSON.stringify(header);
  text = text.padEnd(Math.ceil(text.length / 8) * 8);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, Buffer.from(text), ...[...tensors.values()].map(({ bytes }) => bytes)]));
}

function e4m3(code: number): number {
  const exponent = (code >> 3) & 15;
  const fraction = code & 7;
  const magnitude = exponent === 0 ? fraction / 512 : (1 + fraction / 8) * 2 ** (exponent - 7);
  return code & 0x80 ? -magnitude : magnitude;
}

const DECODED = Float32Array.from({ length: 256 }, (_, code) => e4m3(code));

function expand({ shape: [n = 0, k = 0], bytes }: Tensor, scales: Tensor): Tensor {
  const scale = new Float32Array(new Uint8Array(scales.bytes).buffer);
  const columns = Math.ceil(k / 128);
  const values = new Float32Array(n * k);
  for (let row = 0; row < n; row++) {
    for (let column = 0; column < k; column++) {
      const at = row * k + column;
      values[at] = (DECODED[bytes[at] ?? 0] ?? 0) * (scale[(row >> 7) * columns + (column >> 7)] ?? 0);
    }
  }
  return { dtype: 'F32', shape: [n, k], bytes: Buffer.from(values.buffer) };
}

export const SHARDS = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const;
export const INDEX = 'model.safetensors.index.json';
const SIDES = ['generation_config.json', 'sigmoe.json', 'tokenizer.json', 'tokenizer_config.json'] as const;

/** The bundled model with every linear layer in float32. */
export function float32Folder(): string {
  const folder = folderWith({});
  const stored = new Map(SHARDS.flatMap((file) => [...readTensors(join(nano, file))]));
  const index = JSON.parse(readFileSync(join(nano, INDEX), 'utf8')) as { weight_map: Record<string, string> };
  const weight_map: Record<string, string> = {};
  for (const file of SHARDS) {
    const tensors = new Map<string, Tensor>();
    for (const [name, tensor] of stored) {
      if (index.weight_map[name] !== file || name.endsWith('_scale_inv')) continue;
      const scales = stored.get(`${name}_scale_inv`);
      tensors.set(name, scales === undefined ? tensor : expand(tensor, scales));
      weight_map[name] = file;
    }
    writeTensors(join(folder, file), tensors);
  }
  writeFileSync(join(folder, INDEX), JSON.stringify({ metadata: {}, weight_map }));
  const config = JSON.parse(readFileSync(join(nano, 'config.json'), 'utf8')) as Record<string, unknown>;
  delete config.quantization_config;
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  for (const name of SIDES) copyFileSync(join(nano, name), join(folder, name));
  return folder;
}

/** A copy of the bundled model's folder. */
export function nanoCopy(): string {
  const folder = folderWith({});
  for (const name of [...SHARDS, INDEX, 'config.json', ...SIDES]) copyFileSync(join(nano, name), join(folder, name));
  return folder;
}
