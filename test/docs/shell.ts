/** Runs the shell blocks of a page in order, in a folder of the page's own, as a reader would; a server stays up for the blocks after it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { createInterface } from 'node:readline';
import { root } from '../helpers/files.js';
import { freePort } from '../helpers/ports.js';
import { commandLines } from './pages.js';

/** Of one block; a server may stay as long as its page's other blocks need. */
const LIMIT_MS = 120_000;

export interface Ran {
  status: number | null;
  stdout: string;
  stderr: string;
}

export class Shell {
  private readonly folder = mkdtempSync(join(tmpdir(), 'sigmoe-docs-'));
  private server: ChildProcess | undefined;

  private constructor(private readonly port: number) {
    const programs = join(this.folder, '.bin');
    mkdirSync(programs);
    writeFileSync(join(programs, 'sigmoe'), `#!/bin/sh\nexec "${process.execPath}" "${join(root, 'dist/cli/main.js')}" "$@"\n`);
    chmodSync(join(programs, 'sigmoe'), 0o755);
    for (const name of ['models', 'examples']) symlinkSync(join(root, name), join(this.folder, name));
  }

  /** Port 8000 of the docs becomes a free one. */
  static async open(): Promise<Shell> {
    return new Shell(await freePort());
  }

  /** A block whose last command is a server leaves it running. */
  async run(block: string): Promise<Ran> {
    const text = block.replaceAll('8000', String(this.port));
    const lines = commandLines(text);
    if (/(^|\s)sigmoe serve /.test(lines.at(-1) ?? '')) return this.serve(text);
    const child = this.spawn(text);
    const ended = collect(child);
    const [status] = await once(child, 'close');
    return { ...ended, status };
  }

  private async serve(text: string): Promise<Ran> {
    await this.stop();
    // exec: the signal that ends the server later must reach it, not the shell.
    const child = this.spawn(text.replace(/(^|\n)(?=sigmoe serve )/, '$1exec '));
    this.server = child;
    const output = collect(child);
    if (child.stdout === null) throw new Error('no standard output');
    const ready = createInterface({ input: child.stdout });
    const [outcome] = await Promise.race([once(ready, 'line'), once(child, 'close').then(([status]) => [status ?? 1])]);
    return { ...output, status: typeof outcome === 'string' ? 0 : outcome };
  }

  /** Ends the server as an operator does; its exit status. */
  async stop(): Promise<number | null> {
    const child = this.server;
    if (child === undefined) return 0;
    this.server = undefined;
    const closed = once(child, 'close');
    child.kill('SIGTERM');
    const [status] = await closed;
    return status;
  }

  async close(): Promise<void> {
    await this.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }

  private spawn(text: string): ChildProcess {
    const env = { ...process.env, PATH: `${join(this.folder, '.bin')}${delimiter}${process.env.PATH ?? '/usr/bin:/bin'}` };
    // A group of its own, so that nothing it started is left when its time is up.
    const child = spawn('/bin/sh', ['-eu', '-c', text], {
      cwd: this.folder,
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    const limit = setTimeout(() => endGroup(child), LIMIT_MS);
    child.on('close', () => clearTimeout(limit));
    return child;
  }
}

function endGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
  }
}

function collect(child: ChildProcess): Ran {
  const ran: Ran = { status: null, stdout: '', stderr: '' };
  child.stdout?.setEncoding('utf8').on('data', (data: string) => {
    ran.stdout += data;
  });
  child.stderr?.setEncoding('utf8').on('data', (data: string) => {
    ran.stderr += data;
  });
  return ran;
}
