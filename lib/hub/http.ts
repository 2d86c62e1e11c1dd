/**
 * HTTP to a hub, and nowhere else in the library: one GET at a time, redirects followed by hand so that the token goes to the hub
 * alone, proxies as the environment names them. What fails comes out as worth another try or not.
 */
import { readFileSync } from 'node:fs';
import type { Dispatcher } from 'undici';
import { DownloadError } from '../errors.js';
import { hasProxy, timeoutSeconds } from './environment.js';
import { Passing, Refused } from './failures.js';

export type Answer = Pick<Dispatcher.ResponseData, 'statusCode' | 'headers' | 'body'>;

const MAX_REDIRECTS = 5;
const REDIRECTS = [301, 302, 303, 307, 308];
const MAX_JSON_BYTES = 64 * 1024 * 1024;

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string };

export class Http {
  private constructor(
    private readonly send: typeof import('undici').request,
    private readonly dispatcher: Dispatcher,
    /** Scheme, host and port that `secrets` may be sent to. */
    private readonly origin: string,
    private readonly secrets: Record<string, string>,
  ) {}

  static async open(endpoint: string, secrets: Record<string, string>): Promise<Http> {
    // Loaded by those who connect: everyone else does without.
    const { Agent, EnvHttpProxyAgent, request } = await import('undici');
    const timeout = timeoutSeconds() * 1000;
    const options = { connect: { timeout }, headersTimeout: timeout, bodyTimeout: timeout, maxHeaderSize: 64 * 1024 };
    const dispatcher = hasProxy() ? quietly(() => new EnvHttpProxyAgent(options)) : new Agent(options);
    return new Http(request, dispatcher, new URL(endpoint).origin, secrets);
  }

  async close(): Promise<void> {
    await this.dispatcher.destroy();
  }

  /** A JSON answer of the hub. */
  async json(url: string, signal: AbortSignal | undefined): Promise<unknown> {
    const { body } = await this.get(url, { accept: 'application/json' }, signal);
    const parts: Buffer[] = [];
    let size = 0;
    try {
      for await (const part of body as AsyncIterable<Buffer>) {
        size += part.length;
        if (size > MAX_JSON_BYTES)
          throw new DownloadError(`${this.origin}: a list of files of more than ${MAX_JSON_BYTES} bytes`);
        parts.push(part);
      }
    } catch (error) {
      throw classify(error, this.origin);
    }
    try {
      return JSON.parse(Buffer.concat(parts).toString()) as unknown;
    } catch (cause) {
      const hint = 'is it the address of a hub? a login page of a network answers so';
      throw new DownloadError(`${this.origin}: the answer is not JSON`, hint, undefined, { cause });
    }
  }

  /** The answer with a body, from wherever redirects lead. Whoever gets it reads the body to its end or destroys it. */
  async get(address: string, headers: Record<string, string>, signal: AbortSignal | undefined): Promise<Answer> {
    let url = new URL(address);
    for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
      const answer = await this.once(url, headers, signal);
      const { location } = answer.headers;
      if (!REDIRECTS.includes(answer.statusCode)) return this.accepted(answer, url);
      discard(answer);
      if (typeof location !== 'string' || !URL.canParse(location, url.href)) {
        throw new Passing(`${url.origin} redirects to no address`);
      }
      const next = new URL(location, url);
      const known = next.protocol === 'https:' || (next.protocol === 'http:' && url.protocol === 'http:');
      if (!known) throw new DownloadError(`${url.origin} redirects to ${next.protocol}//${next.host}, which is refused`);
      url = next;
    }
    throw new Passing(`${this.origin} redirects more than ${MAX_REDIRECTS} times`);
  }

  private async once(url: URL, headers: Record<string, string>, signal: AbortSignal | undefined): Promise<Answer> {
    const own = { 'user-agent': `sigmoe/${version}`, 'accept-encoding': 'identity', ...headers };
    const all = url.origin === this.origin ? { ...own, ...this.secrets } : own;
    try {
      return await this.send(url, { dispatcher: this.dispatcher, headers: all, signal: signal ?? null });
    } catch (error) {
      throw signal?.aborted ? error : classify(error, url.origin);
    }
  }

  private accepted(answer: Answer, url: URL): Answer {
    const { statusCode, headers } = answer;
    if (statusCode === 200 || statusCode === 206) return answer;
    discard(answer);
    const said = `${url.origin} answers ${statusCode}`;
    if (statusCode === 429 || statusCode === 503) throw new Passing(said, waitOf(headers['retry-after']));
    if (statusCode === 408 || statusCode >= 500) throw new Passing(said);
    // A store refuses signatures that are too old; the hub makes new ones.
    if (url.origin !== this.origin && (statusCode === 401 || statusCode === 403)) throw new Passing(said);
    if (statusCode === 416) throw new Passing(`${said}: the file is shorter than was listed`);
    const reason = headers['x-error-code'];
    throw new Refused(statusCode, typeof reason === 'string' ? reason : '');
  }
}

/** Without the warning that EnvHttpProxyAgent may change: it is for whoever chose the version, not for whoever has a proxy. */
function quietly<T>(make: () => T): T {
  const { emitWarning } = process;
  process.emitWarning = () => {};
  try {
    return make();
  } finally {
    process.emitWarning = emitWarning;
  }
}

/** Ends an answer that nobody reads. */
export function discard({ body }: Answer): void {
  body.on('error', () => {});
  body.destroy();
}

/** A failed connection, without the address: it may be signed. */
export function classify(error: unknown, host: string): unknown {
  if (!(error instanceof Error)) return error;
  if (error instanceof Passing || error instanceof DownloadError) return error;
  const code = 'code' in error && typeof error.code === 'string' ? error.code : '';
  if (/CERT|SIGNATURE|ERR_TLS|ERR_SSL|EPROTO/.test(code)) {
    const hint = 'if your network has an authority of its own, name its certificate in NODE_EXTRA_CA_CERTS';
    return new DownloadError(`${host}: no trusted connection (${code})`, hint, undefined, { cause: error });
  }
  if (error.message.includes('Proxy response')) {
    const hint = 'see HTTPS_PROXY, HTTP_PROXY and NO_PROXY';
    return new DownloadError(`the proxy does not connect to ${host}`, hint, undefined, { cause: error });
  }
  const words: Record<string, string> = {
    ENOTFOUND: 'the host is not known',
    EAI_AGAIN: 'the host name could not be looked up',
    ECONNREFUSED: 'the connection was refused',
    UND_ERR_CONNECT_TIMEOUT: 'no connection in time',
    UND_ERR_HEADERS_TIMEOUT: 'no answer in time',
    UND_ERR_BODY_TIMEOUT: 'nothing more arrived in time',
  };
  return new Passing(`${host}: ${words[code] ?? 'the connection was cut'}`, undefined, { cause: error });
}

// Seconds, or a date.
function waitOf(header: string | string[] | undefined): number | undefined {
  if (typeof header !== 'string') return undefined;
  const ms = /^\s*\d+\s*$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.max(0, ms);
}
