/**
 * A file on its way: its bytes as far as they arrived, in ranges that are filled side by side, and a journal beside it of how far
 * each is. Both stay when a download ends early, whatever ended it, and the next one goes on from there.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, readlinkSync } from 'node:fs';
import { type FileHandle, open, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { isFields } from '../folder.js';

export interface Range {
  begin: number;
  end: number;
  /** Bytes of it that are there, from its begin. */
  done: number;
}

const SAVE_EVERY_MS = 200;
const HEARTBEAT_MS = 10_000;
/** A journal of another machine or container that is older than this has nobody who writes it. */
const ABANDONED_MS = 60_000;

export class PartFile {
  ranges: Range[] = [];
  private savedAt = 0;
  private saving: Promise<void> = Promise.resolve();
  private readonly heartbeat: NodeJS.Timeout;

  private constructor(
    readonly path: string,
    private readonly journal: string,
    private readonly size: number,
    private readonly file: FileHandle,
  ) {
    this.heartbeat = setInterval(() => {
      utimes(this.journal, new Date(), new Date()).catch(() => {});
    }, HEARTBEAT_MS).unref();
  }

  /** Bytes of a blob that a download would not have to fetch again. */
  static async bytesThere(blob: string, size: number): Promise<number> {
    const { path, journal } = namesOf(blob);
    return (await readJournal(path, journal, size))?.ranges.reduce((sum, { done }) => sum + done, 0) ?? 0;
  }

  static async discard(blob: string): Promise<void> {
    const { path, journal } = namesOf(blob);
    await rm(journal, { force: true });
    await rm(path, { force: true });
  }

  /** Goes on with what is there, or begins anew. The caller holds the lock of the cache entry. */
  static async open(blob: string, size: number, chunkBytes: number): Promise<PartFile> {
    const { path, journal } = namesOf(blob);
    const known = await readJournal(path, journal, size);
    if (known === undefined) await PartFile.discard(blob);
    const part = new PartFile(path, journal, size, await open(path, known === undefined ? 'wx+' : 'r+'));
    try {
      if (known === undefined) await part.restart(chunkBytes);
      else {
        part.ranges = known.ranges;
        await part.save();
      }
    } catch (error) {
      await part.close();
      throw error;
    }
    return part;
  }

  get doneBytes(): number {
    return this.ranges.reduce((sum, { done }) => sum + done, 0);
  }

  /** Forgets what is there. */
  async restart(chunkBytes: number): Promise<void> {
    this.ranges = [];
    for (let begin = 0; begin < this.size; begin += chunkBytes) {
      this.ranges.push({ begin, end: Math.min(this.size, begin + chunkBytes), done: 0 });
    }
    await this.save();
  }

  async write(range: Range, data: Uint8Array): Promise<void> {
    for (let at = 0; at < data.length; ) {
      const { bytesWritten } = await this.file.write(data, at, data.length - at, range.begin + range.done);
      range.done += bytesWritten;
      at += bytesWritten;
    }
    if (Date.now() - this.savedAt > SAVE_EVERY_MS) await this.save();
  }

  /** Everything is on the disk when this settles. */
  async sync(): Promise<void> {
    await this.file.datasync();
  }

  async close(): Promise<void> {
    clearInterval(this.heartbeat);
    await this.saving.catch(() => {});
    await this.file.close();
  }

  /** After the last write, so that the next download finds all of it. */
  async save(): Promise<void> {
    this.savedAt = Date.now();
    this.saving = this.saving.catch(() => {}).then(() => this.saveNow());
    await this.saving;
  }

  private async saveNow(): Promise<void> {
    const content = { version: 1, size: this.size, owner: OWNER, ranges: this.ranges };
    await writeFile(`${this.journal}.new`, JSON.stringify(content));
    await rename(`${this.journal}.new`, this.journal);
  }
}

function namesOf(blob: string): { path: string; journal: string } {
  return { path: `${blob}.sigmoe.incomplete`, journal: `${blob}.sigmoe.json` };
}

interface Journal {
  owner: string;
  ranges: Range[];
}

/** A journal that fits the file, or undefined. */
async function readJournal(path: string, journal: string, size: number): Promise<Journal | undefined> {
  let content: unknown;
  let length: number;
  try {
    content = JSON.parse(await readFile(journal, 'utf8'));
    length = (await stat(path)).size;
  } catch {
    return undefined;
  }
  if (!isFields(content) || content.version !== 1 || content.size !== size || !Array.isArray(content.ranges)) return undefined;
  const ranges: Range[] = [];
  let expected = 0;
  for (const range of content.ranges as unknown[]) {
    const { begin, end, done } = (isFields(range) ? range : {}) as Partial<Range>;
    const fits = begin === expected && Number.isSafeInteger(end) && Number.isSafeInteger(done);
    if (!fits || end === undefined || done === undefined) return undefined;
    if (end <= begin || end > size || done < 0 || done > end - begin || (done > 0 && begin + done > length)) return undefined;
    ranges.push({ begin, end, done });
    expected = end;
  }
  return expected === size && length <= size ? { owner: String(content.owner), ranges } : undefined;
}

/** Processes that see each other's locks: those of one boot of one machine with one network between them. */
const OWNER = ownerName();

function ownerName(): string {
  let place = hostname();
  try {
    place += readFileSync('/proc/sys/kernel/random/boot_id', 'utf8') + readlinkSync('/proc/self/ns/net');
  } catch {
    // A system that does not tell: its name will do.
  }
  return createHash('sha256').update(place).digest('hex').slice(0, 16);
}

/** Waits while somebody who does not see our lock may be writing the parts of a blob. */
export async function waitForOwner(blob: string, signal: AbortSignal, onNote: (line: string) => void): Promise<void> {
  const { journal } = namesOf(blob);
  let told = false;
  while (existsSync(journal)) {
    let owner: unknown;
    let age: number;
    try {
      const content: unknown = JSON.parse(await readFile(journal, 'utf8'));
      owner = isFields(content) ? content.owner : undefined;
      age = Math.abs(Date.now() - (await stat(journal)).mtimeMs);
    } catch {
      return;
    }
    if (typeof owner !== 'string' || owner === OWNER || age > ABANDONED_MS) return;
    if (!told) onNote('another machine or container is downloading the same file; waiting until it is done or gone');
    told = true;
    await sleep(1000, undefined, { signal });
  }
}
