/** What a command reads: the prompt, from an argument, a file or standard input, and the files that flags name. */
import { open } from 'node:fs/promises';
import { CliError, EXIT_USAGE, fileProblem } from './failure.js';

/** More text than any context holds; a stream that never ends is refused rather than collected for ever. */
const LIMIT_BYTES = 64 << 20;

/** The text of a file. `what` says what it is for. */
export async function readText(path: string, what: string): Promise<string> {
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(path);
  } catch (error) {
    throw new CliError(`${what} ${path}: ${fileProblem(error)}`);
  }
  try {
    return await collect(file.createReadStream(), `${what} ${path}`);
  } finally {
    await file.close();
  }
}

export function readStdin(): Promise<string> {
  return collect(process.stdin, 'standard input');
}

async function collect(stream: NodeJS.ReadableStream, what: string): Promise<string> {
  const parts: Buffer[] = [];
  let size = 0;
  try {
    for await (const part of stream) {
      const data = Buffer.from(part);
      size += data.length;
      if (size > LIMIT_BYTES) throw new CliError(`${what} is longer than ${LIMIT_BYTES >> 20} MiB`);
      parts.push(data);
    }
    return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(parts));
  } catch (error) {
    if (error instanceof CliError) throw error;
    throw new CliError(`${what}: ${error instanceof TypeError ? 'it is not UTF-8 text' : fileProblem(error)}`);
  }
}

/** Exactly one source of the prompt: the argument ("-" is standard input), a file, or else standard input. */
export async function readPrompt(argument: string | undefined, file: string | undefined): Promise<string> {
  if (argument !== undefined && file !== undefined) {
    throw new CliError('a prompt was given twice, as an argument and with --file', '', EXIT_USAGE);
  }
  if (file !== undefined) return readText(file, 'prompt file');
  if (argument !== undefined && argument !== '-') return argument;
  if (process.stdin.isTTY && argument === undefined) {
    throw new CliError('there is no prompt', 'give it as an argument, with --file, or on standard input', EXIT_USAGE);
  }
  return readStdin();
}
