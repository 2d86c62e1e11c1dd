/** Runs the built CLI as a user would: a child process with pipes, or with a terminal. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { join } from 'node:path';
import { root } from '../helpers/files.js';

export const main = join(root, 'dist/cli/main.js');
export const NOTICE = 'writes fluent, often wrong text; for testing and demonstration; never medical advice';

export interface Ended {
  stdout: string;
  stderr: string;
  status: number | null;
}

export function start(args: string[], env: Record<string, string | undefined> = {}): ChildProcessWithoutNullStreams {
  return spawn(process.execPath, [main, ...args], { cwd: root, env: { ...process.env, ...env } });
}

export function ended(child: ChildProcessWithoutNullStreams): Promise<Ended> {
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on('data', (data) => stdout.push(data));
  child.stderr.on('data', (data) => stderr.push(data));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status) =>
      resolve({ stdout: String(Buffer.concat(stdout)), stderr: String(Buffer.concat(stderr)), status }),
    );
  });
}

/** Runs to the end, with `input` on standard input. */
export function sigmoe(args: string[], input = ''): Promise<Ended> {
  const child = start(args);
  child.stdin.on('error', () => {}); // a command that does not read its input may end before it is written
  child.stdin.end(input);
  return ended(child);
}

/** Lines of stderr that are not the notice of the bundled model. */
export function complaints({ stderr }: Ended): string[] {
  return stderr.split('\n').filter((line) => line !== '' && line !== NOTICE);
}
