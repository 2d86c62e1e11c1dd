/**
 * A hub on this machine that speaks both protocols, and a store on another port that large files are redirected to. What it does
 * wrong is up to the test.
 */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

export interface Seen {
  /** The hub itself, or the store. */
  host: 'hub' | 'store';
  url: string;
  headers: IncomingMessage['headers'];
  /** The file asked for. */
  path: string | undefined;
}

export interface FileRequest {
  path: string;
  content: Buffer;
  /** As asked; end exclusive. */
  begin: number;
  end: number;
  /** How often this file was asked before. */
  count: number;
}

/** Answers a request for a file in place of the hub; false leaves it to the hub. */
export type Fault = (file: FileRequest, response: ServerResponse, request: IncomingMessage) => boolean | Promise<boolean>;

/** Answers a request for a list in place of the hub; false leaves it to the hub. */
export type ListFault = (response: ServerResponse, count: number) => boolean;

export const COMMIT = '0123456789abcdef0123456789abcdef01234567';
const LARGE = 4096;

export class FakeHub {
  readonly seen: Seen[] = [];
  fault: Fault = () => false;
  listFault: ListFault = () => false;
  /** Bytes a second of each answer; 0: as fast as it goes. */
  pace = 0;
  commit = COMMIT;
  /** Bytes of files that were sent. */
  sentBytes = 0;
  onSent: (bytes: number) => void = () => {};
  private readonly hub: Server;
  private readonly store: Server;
  private readonly counts = new Map<string, number>();
  private lists = 0;

  private constructor(
    readonly id: string,
    public files: Record<string, Buffer>,
  ) {
    this.hub = createServer((request, response) => void this.answer('hub', request, response));
    this.store = createServer((request, response) => void this.answer('store', request, response));
  }

  static async start(id: string, files: Record<string, Buffer>): Promise<FakeHub> {
    const fake = new FakeHub(id, files);
    for (const server of [fake.hub, fake.store]) {
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    }
    return fake;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.hub.address() as AddressInfo).port}`;
  }

  private get storeUrl(): string {
    return `http://127.0.0.1:${(this.store.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    for (const server of [this.hub, this.store]) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  requestsOf(path: string): Seen[] {
    return this.seen.filter((seen) => seen.path === path && (seen.host === 'store' || !this.isLarge(path)));
  }

  private isLarge(path: string): boolean {
    return (this.files[path]?.length ?? 0) >= LARGE;
  }

  private async answer(host: Seen['host'], request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on('error', () => {});
    const url = new URL(request.url ?? '/', 'http://hub');
    const path = this.fileOf(url);
    this.seen.push({ host, url: url.href.slice('http://hub'.length), headers: request.headers, path });
    if (path !== undefined) await this.sendFile(host, path, request, response);
    else if (url.pathname.startsWith(`/api/models/${this.id}/revision/`)) this.sendList(response, () => this.huggingFaceList());
    else if (url.pathname === `/api/v1/models/${this.id}/repo/files`) this.sendList(response, () => this.modelScopeList());
    else end(response, 404, { 'x-error-code': 'RepoNotFound' });
  }

  private fileOf(url: URL): string | undefined {
    if (url.pathname === `/api/v1/models/${this.id}/repo`) return url.searchParams.get('FilePath') ?? undefined;
    const [, path] = /^(?:\/[^/]+\/[^/]+\/resolve\/[^/]+|\/store)\/(.+)$/.exec(url.pathname) ?? [];
    return path === undefined ? undefined : decodeURIComponent(path);
  }

  private sendList(response: ServerResponse, list: () => unknown): void {
    if (!this.listFault(response, this.lists++))
      end(response, 200, { 'content-type': 'application/json' }, JSON.stringify(list()));
  }

  private huggingFaceList(): unknown {
    const siblings = Object.entries(this.files).map(([rfilename, content]) => ({
      rfilename,
      size: content.length,
      blobId: gitSha1(content),
      ...(this.isLarge(rfilename) ? { lfs: { sha256: sha256(content), size: content.length, pointerSize: 130 } } : {}),
    }));
    return { id: this.id, sha: this.commit, siblings };
  }

  private modelScopeList(): unknown {
    const Files = Object.entries(this.files).map(([Path, content]) => ({
      Name: Path.split('/').at(-1),
      Path,
      Size: content.length,
      Sha256: sha256(content),
      Type: 'blob',
      Revision: this.commit,
    }));
    return { Code: 200, Success: true, Data: { Files: [{ Path: 'folder', Type: 'tree', Size: 0, Sha256: '' }, ...Files] } };
  }

  private async sendFile(host: Seen['host'], path: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const content = this.files[path];
    if (content === undefined) return end(response, 404, { 'x-error-code': 'EntryNotFound' });
    if (host === 'hub' && this.isLarge(path))
      return end(response, 302, { location: `${this.storeUrl}/store/${encodeURI(path)}?signature=secret` });
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
    const begin = Number(first ?? 0);
    const stop = last === undefined ? content.length : Math.min(content.length, Number(last) + 1);
    const count = this.counts.get(path) ?? 0;
    this.counts.set(path, count + 1);
    if (await this.fault({ path, content, begin, end: stop, count }, response, request)) return;
    const ranged = first !== undefined;
    response.writeHead(ranged ? 206 : 200, {
      'content-length': stop - begin,
      ...(ranged ? { 'content-range': `bytes ${begin}-${stop - 1}/${content.length}` } : {}),
    });
    await this.send(response, content.subarray(begin, stop));
    response.end();
  }

  /** A body, at the pace that was set. */
  async send(response: ServerResponse, body: Buffer): Promise<void> {
    const step = this.pace === 0 ? body.length : Math.max(1024, this.pace / 100);
    for (let at = 0; at < body.length && !response.destroyed; at += step) {
      const part = body.subarray(at, at + step);
      response.write(part);
      this.sentBytes += part.length;
      this.onSent(this.sentBytes);
      if (this.pace > 0) await sleep(10);
    }
  }
}

export function end(response: ServerResponse, status: number, headers: Record<string, string> = {}, body = ''): void {
  response.writeHead(status, headers);
  response.end(body);
}

export function sha256(content: Buffer): string {
  return createHash('sha256').update(content).digest('hex');
}

export function gitSha1(content: Buffer): string {
  return createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex');
}
