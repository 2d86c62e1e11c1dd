/** Writing what a benchmark found. */
import { appendFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CliError, fileProblem } from '../../failure.js';

export async function save(path: string, text: string): Promise<void> {
  await attempt(path, () => writeFile(path, text));
}

/** Adds one line; a file that does not end a line gets an end first. */
export async function appendLine(path: string, line: string): Promise<void> {
  await attempt(path, async () => {
    const before = await readFile(path, 'utf8').catch(() => '');
    await appendFile(path, `${before === '' || before.endsWith('\n') ? '' : '\n'}${line}\n`);
  });
}

async function attempt(path: string, write: () => Promise<void>): Promise<void> {
  try {
    await mkdir(dirname(path), { recursive: true });
    await write();
  } catch (error) {
    throw new CliError(`result file ${path}: ${fileProblem(error)}`);
  }
}

/** The command as it was typed, for whoever reads its figures. */
export function commandLine(): string {
  return ['sigmoe', ...process.argv.slice(2)].join(' ');
}
