/** Settings of the server. The command line spells them in lib/cli/commands/serve.ts. */
import type { CompletionsOptions } from '../openai/index.js';
import type { ApiKey, KeyLimits } from './keys.js';
import type { Logger } from './log.js';
import type { Tracing } from './tracing.js';

export interface ServerOptions extends CompletionsOptions {
  /** Without keys every caller is served. */
  keys?: readonly ApiKey[] | undefined;
  /** Limits of every key that has none of its own; without keys, of all callers together. */
  limits?: KeyLimits | undefined;
  /** Largest request body. Default 4 MiB, which holds any prompt of 128K tokens several times. */
  maxBodyBytes?: number | undefined;
  cors?: CorsOptions | undefined;
  tls?: { key: string | Buffer; cert: string | Buffer } | undefined;
  log?: Logger | undefined;
  /** Logs what is asked and answered. */
  logContent?: boolean | undefined;
  tracing?: Tracing | undefined;
  /** A stream that waits for its first token shows every so often that it lives. Default 10,000. */
  keepAliveMs?: number | undefined;
  /** Serves the chat page at `/`. Default true. */
  page?: boolean | undefined;
}

export interface CorsOptions {
  /** Origins whose pages may call the server; `*` is any. */
  origins: readonly string[];
  methods?: readonly string[] | undefined;
  headers?: readonly string[] | undefined;
  credentials?: boolean | undefined;
}

export const DEFAULT_MAX_BODY_BYTES = 4 * 1024 * 1024;
export const DEFAULT_KEEP_ALIVE_MS = 10_000;
