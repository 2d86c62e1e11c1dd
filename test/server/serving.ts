/** A real server over the bundled model on a free port, and the official client for it. */
import type { AddressInfo } from 'node:net';
import { PassThrough } from 'node:stream';
import OpenAI from 'openai';
import { afterAll } from 'vitest';
import { type LoadOptions, Model } from '../../lib/index.js';
import { buildApp } from '../../lib/server/app.js';
import { createLog } from '../../lib/server/log.js';
import type { ServerOptions } from '../../lib/server/options.js';
import { nano } from '../helpers/files.js';

export const MODEL = 'nano';

export interface Serving {
  app: ReturnType<typeof buildApp>;
  model: Model;
  url: string;
  client: OpenAI;
  /** Everything logged so far. */
  logged(): string;
}

const cleanups: (() => Promise<unknown>)[] = [];
afterAll(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

export async function serving(options: Partial<ServerOptions> = {}, load: LoadOptions = {}): Promise<Serving> {
  const model = await Model.load(nano, { threads: 1, ...load });
  cleanups.push(() => model.dispose());
  const lines: Buffer[] = [];
  const sink = new PassThrough();
  sink.on('data', (line: Buffer) => lines.push(line));
  const app = buildApp(model, { modelName: MODEL, log: createLog('debug', sink), ...options });
  await app.listen({ port: 0, host: '127.0.0.1' });
  cleanups.push(() => app.close());
  const { port } = app.server.address() as AddressInfo;
  const url = `http://127.0.0.1:${port}`;
  const client = clientFor(url);
  return { app, model, url, client, logged: () => Buffer.concat(lines).toString() };
}

export function clientFor(url: string, apiKey = 'none'): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
}
