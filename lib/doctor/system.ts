/** The machine as files and programs; tests put another in its place. */
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { promisify } from 'node:util';

export interface System {
  /** The text of a file; undefined where it cannot be read. */
  read(path: string): string | undefined;
  /** The names in a folder; none where it cannot be read. */
  list(path: string): string[];
  /** What a program printed; undefined where there is none, it failed, or it took too long. */
  run(program: string, args: string[]): Promise<string | undefined>;
  env: NodeJS.ProcessEnv;
}

const PROGRAM_LIMIT_MS = 15_000;

export const thisMachine: System = {
  read(path) {
    try {
      return readFileSync(path, 'utf8');
    } catch {
      return undefined;
    }
  },
  list(path) {
    try {
      return readdirSync(path);
    } catch {
      return [];
    }
  },
  async run(program, args) {
    try {
      return (await promisify(execFile)(program, args, { timeout: PROGRAM_LIMIT_MS })).stdout;
    } catch {
      return undefined;
    }
  },
  env: process.env,
};
