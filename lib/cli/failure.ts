/** How a command fails: one line on stderr and an exit status. */
import { CommanderError } from 'commander';
import { EngineError } from '../index.js';

export const EXIT_FAILURE = 1;
export const EXIT_USAGE = 2;
/** What a shell reports for a program ended by SIGINT and by SIGPIPE. */
export const EXIT_INTERRUPTED = 130;
export const EXIT_OUTPUT_CLOSED = 141;

/** A failure of the command itself rather than of the engine: a prompt that is missing, a file that cannot be read. */
export class CliError extends Error {
  readonly hint: string;
  readonly status: number;

  constructor(message: string, hint = '', status = EXIT_FAILURE) {
    super(message);
    this.hint = hint;
    this.status = status;
  }
}

/** The one line for an error, and the status to exit with. Commander has already printed its own. */
export function describeFailure(error: unknown): { line: string; status: number } {
  if (error instanceof CommanderError) return { line: '', status: error.exitCode === 0 ? 0 : EXIT_USAGE };
  if (error instanceof EngineError)
    return { line: oneLine(`${error.code}: ${error.message}`, error.hint), status: EXIT_FAILURE };
  if (error instanceof CliError) return { line: oneLine(error.message, error.hint), status: error.status };
  return { line: oneLine(error instanceof Error ? error.message : String(error), ''), status: EXIT_FAILURE };
}

function oneLine(message: string, hint: string): string {
  return `${message}${hint === '' ? '' : ` - ${hint}`}`.replace(/\s*[\r\n]+\s*/g, ' ');
}

/** What went wrong with a file, in the words of the operating system without its call. */
export function fileProblem(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  switch (code) {
    case 'ENOENT':
      return 'no such file';
    case 'EISDIR':
      return 'it is a folder';
    case 'EACCES':
      return 'permission denied';
    default:
      return error instanceof Error ? error.message : String(error);
  }
}
