/** The environment of a test: a fake hub, empty caches, and nothing of the machine's own settings. */
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect } from 'vitest';
import type { PullOptions } from '../../lib/hub/pull.js';
import { pullWith } from '../../lib/hub/pull.js';
import type { Policy } from '../../lib/hub/retry.js';
import { folderWith, nano } from '../helpers/files.js';
import { FakeHub } from './fake_hub.js';

export const ID = 'owner/model-1.5';

/** As the default, without its patience. */
export const BRISK: Policy = { tries: 4, delayMs: 5, maxDelayMs: 20, maxRetryAfterMs: 2000, chunkBytes: 64 * 1024 };

const VARIABLES = /^(HF_|HUGGING|HUGGINGFACE|MODELSCOPE_|TRANSFORMERS_OFFLINE|XDG_CACHE_HOME|(https?|no)_proxy$)/i;

export interface Caches {
  huggingface: string;
  modelscope: string;
}

/** Variables that name the hub and empty caches; every other that means something to hubs is left out. */
export function hubEnvironment(hub: FakeHub): { env: NodeJS.ProcessEnv; caches: Caches } {
  const home = folderWith({});
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !VARIABLES.test(name)));
  const caches = { huggingface: join(home, 'hf/hub'), modelscope: join(home, 'ms') };
  return {
    env: {
      ...env,
      HF_ENDPOINT: hub.url,
      MODELSCOPE_ENDPOINT: hub.url,
      HF_HOME: join(home, 'hf'),
      MODELSCOPE_CACHE: caches.modelscope,
    },
    caches,
  };
}

const hubs: FakeHub[] = [];
afterEach(async () => {
  for (const hub of hubs.splice(0)) await hub.stop();
});

/** A hub that this process's downloads go to until the test ends. */
export async function startHub(
  files: Record<string, Buffer> = someFiles(),
  id = ID,
): Promise<{ hub: FakeHub; caches: Caches }> {
  const hub = await FakeHub.start(id, files);
  hubs.push(hub);
  const { env, caches } = hubEnvironment(hub);
  for (const name of Object.keys(process.env)) if (VARIABLES.test(name)) delete process.env[name];
  Object.assign(process.env, env);
  return { hub, caches };
}

export function briskPull(options: PullOptions = {}, id = ID) {
  return pullWith(id, options, BRISK);
}

/** Small and large, in folders, empty, twice the same, a length that no range divides. */
export function someFiles(): Record<string, Buffer> {
  const shard = randomBytes(300_001);
  return {
    'config.json': Buffer.from('{"model_type": "bailing_moe"}'),
    'tokenizer.json': Buffer.from('{}'),
    'model-00001-of-00002.safetensors': shard,
    'model-00002-of-00002.safetensors': randomBytes(65_536 * 2),
    'copy.bin': shard,
    'empty.txt': Buffer.alloc(0),
    'figures/one more/über.png': randomBytes(10_000),
  };
}

export function nanoFiles(): Record<string, Buffer> {
  return Object.fromEntries(readdirSync(nano).map((name) => [name, readFileSync(join(nano, name))]));
}

/** Every file that the hub has is in the folder, byte for byte, and no other. */
export function expectSame(folder: string, files: Record<string, Buffer>): void {
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  const found = names.filter((name) => statSync(join(folder, name)).isFile());
  expect(found.sort()).toEqual(Object.keys(files).sort());
  for (const [name, content] of Object.entries(files))
    expect(readFileSync(join(folder, name)).equals(content), name).toBe(true);
}
