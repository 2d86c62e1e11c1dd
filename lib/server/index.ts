/** Runs the server: listens at once, answers 503 until the model is loaded, and ends without dropping what runs. */
import type { AddressInfo } from 'node:net';
import type { LoadProgress, Model } from '../index.js';
import { buildApp } from './app.js';
import { LoadingModel } from './loading.js';
import type { ServerOptions } from './options.js';

export { buildApp } from './app.js';
export { type ApiKey, type KeyLimits, parseKeyFile, unnamedKey } from './keys.js';
export { createLog, type Logger, type LogLevel } from './log.js';
export type { CorsOptions, ServerOptions } from './options.js';
export { openTracing } from './tracing.js';

export interface ListenOptions {
  host: string;
  port: number;
}

export interface RunningServer {
  url: string;
  /** The load: rejects as it does. */
  ready: Promise<Model>;
  /**
   * Takes no more requests, waits this long for those that run, ends the rest, and frees the model. Resolves with how many
   * were cut off.
   */
  close(drainMs: number): Promise<number>;
}

/** Time for answers that are cut off to say so. */
const LAST_WORDS_MS = 1000;

export async function serve(
  load: (onProgress: (progress: LoadProgress) => void) => Promise<Model>,
  options: ServerOptions & ListenOptions,
): Promise<RunningServer> {
  // The port is taken first: a load of minutes should not end in "address in use".
  const loading = new LoadingModel();
  const app = buildApp(loading, options);
  await app.listen({ host: options.host, port: options.port });
  loading.begin(load);
  const { service } = app;
  return {
    url: urlOf(app.server.address() as AddressInfo, options),
    ready: loading.ready,
    async close(drainMs) {
      const cut = await service.drain(drainMs, LAST_WORDS_MS);
      await app.close();
      await service.model?.dispose();
      return cut;
    },
  };
}

function urlOf({ address, family, port }: AddressInfo, { tls }: ServerOptions): string {
  const host = family === 'IPv6' ? `[${address}]` : address;
  return `${tls === undefined ? 'http' : 'https'}://${host}:${port}`;
}
