/** Ctrl-C: the first asks the work to stop, a second ends the process at once. */
import { CliError, EXIT_INTERRUPTED } from './failure.js';
import { outputClosed } from './terminal.js';

/**
 * Runs `body` with a signal that aborts on Ctrl-C and when stdout is closed. Whatever error that abort leads to inside,
 * the one thrown here is its cause, which holds the status to exit with.
 */
export async function interruptible<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const onInterrupt = () => {
    if (controller.signal.aborted) process.exit(EXIT_INTERRUPTED);
    controller.abort(new CliError('', '', EXIT_INTERRUPTED));
    if (process.stderr.isTTY) process.stderr.write('\n'); // the terminal has shown ^C in the middle of a line
  };
  process.on('SIGINT', onInterrupt);
  const signal = AbortSignal.any([controller.signal, outputClosed]);
  try {
    return await body(signal);
  } catch (error) {
    throw signal.aborted ? signal.reason : error;
  } finally {
    process.off('SIGINT', onInterrupt);
  }
}
