/**
 * The two output streams. stdout carries answers and facts, stderr everything else. A reader that leaves (`| head`) ends
 * the command quietly; any other failure to write is an error.
 */
import { once } from 'node:events';
import pc from 'picocolors';
import { CliError, EXIT_OUTPUT_CLOSED } from './failure.js';

const closed = new AbortController();

/** Aborts when stdout can no longer be written; its reason is the error to exit with. */
export const outputClosed: AbortSignal = closed.signal;

export function watchOutput(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    closed.abort(
      error.code === 'EPIPE'
        ? new CliError('', '', EXIT_OUTPUT_CLOSED)
        : new CliError(`standard output could not be written: ${error.message}`),
    );
  });
  // Nobody can be told about a stderr that is gone.
  process.stderr.on('error', () => {});
}

/** Writes to stdout and waits while the reader is behind. */
export async function write(text: string): Promise<void> {
  if (text === '') return;
  outputClosed.throwIfAborted();
  if (process.stdout.write(text)) return;
  try {
    await once(process.stdout, 'drain', { signal: outputClosed });
  } catch (error) {
    throw outputClosed.reason ?? error;
  }
}

export function note(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** On stderr, as that is where what is dimmed goes. */
export function dim(text: string): string {
  return process.stderr.isTTY ? pc.createColors(pc.isColorSupported).dim(text) : text;
}

/**
 * Text of a model as a terminal may show it: whatever it wrote, it cannot move the cursor, set a title or ring a bell.
 * A file or pipe gets the text unchanged.
 */
export function printable(text: string, stream: NodeJS.WriteStream = process.stdout): string {
  return stream.isTTY ? text.replace(/(?![\n\t])\p{Cc}/gu, '\ufffd') : text;
}
