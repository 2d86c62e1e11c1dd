/** How far a download is, told at a pace that a screen can follow. */
import type { RemoteFile } from './listing.js';

export interface PullProgress {
  /** Of all files, also those that were in the cache. */
  bytesDone: number;
  bytesTotal: number;
  filesDone: number;
  filesTotal: number;
  /** Files on their way. */
  active: { path: string; bytesDone: number; bytesTotal: number }[];
}

const EVERY_MS = 50;

export class Progress {
  /** What came over the network. */
  fetchedBytes = 0;
  private bytesDone = 0;
  private bytesTotal = 0;
  private filesDone = 0;
  private filesTotal = 0;
  private readonly active = new Map<RemoteFile, number>();
  private toldAt = 0;

  constructor(private readonly tell: (progress: PullProgress) => void) {}

  /** Of files with the same content, one is downloaded and counted. */
  begin(files: readonly RemoteFile[], missing: readonly RemoteFile[]): void {
    const distinct = [...new Map(files.map((file) => [file.hash.hex, file])).values()];
    this.bytesTotal = bytesOf(distinct);
    this.bytesDone = this.bytesTotal - bytesOf(missing);
    this.filesTotal = distinct.length;
    this.filesDone = distinct.length - missing.length;
    this.report();
  }

  /** Bytes of a file that arrived now. */
  fetched(file: RemoteFile, bytes: number): void {
    this.fetchedBytes += bytes;
    this.known(file, bytes);
  }

  /** Bytes of a file that an earlier download left; negative when some have to be fetched again. */
  known(file: RemoteFile, bytes: number): void {
    this.active.set(file, (this.active.get(file) ?? 0) + bytes);
    this.bytesDone += bytes;
    if (Date.now() - this.toldAt >= EVERY_MS) this.report();
  }

  /** The file is in the cache: by this download, or by another that was waited for. */
  finish(file: RemoteFile): void {
    this.bytesDone += file.size - (this.active.get(file) ?? 0);
    this.active.delete(file);
    this.filesDone++;
    this.report();
  }

  private report(): void {
    this.toldAt = Date.now();
    const { bytesDone, bytesTotal, filesDone, filesTotal } = this;
    const active = [...this.active].map(([{ path, size }, bytes]) => ({ path, bytesDone: bytes, bytesTotal: size }));
    this.tell({ bytesDone, bytesTotal, filesDone, filesTotal, active });
  }
}

export function bytesOf(files: readonly RemoteFile[]): number {
  return files.reduce((sum, { size }) => sum + size, 0);
}
