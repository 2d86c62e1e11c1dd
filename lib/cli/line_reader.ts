/** Lines from standard input, one at a time: with editing and history in memory on a terminal, plainly from a pipe. */
import { createInterface, type Interface } from 'node:readline';
import { note } from './terminal.js';

export class LineReader implements Disposable {
  readonly interactive: boolean;
  readonly #reader: Interface;
  readonly #lines: string[] = [];
  #ended = false;
  #wake = () => {};

  constructor(prompt: string) {
    // The prompt goes to stderr, so that stdout holds the answers alone.
    this.interactive = process.stdin.isTTY === true && process.stderr.isTTY === true;
    this.#reader = createInterface({
      input: process.stdin,
      ...(this.interactive ? { output: process.stderr, terminal: true } : { terminal: false }),
      prompt,
    });
    this.#reader.on('line', (line) => {
      this.#lines.push(line);
      this.#wake();
    });
    this.#reader.on('close', () => {
      this.#ended = true;
      this.#wake();
    });
    if (this.interactive) this.#leaveOnSecondInterrupt();
    this.#listen(false);
  }

  /** The next line, or undefined at the end of the input. */
  async next(): Promise<string | undefined> {
    if (this.#lines.length === 0 && !this.#ended) {
      this.#listen(true);
      if (this.interactive) this.#reader.prompt();
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      if (!this.#ended) this.#listen(false);
      else if (this.interactive) note(''); // leaves the line of the prompt
    }
    return this.#lines.shift();
  }

  [Symbol.dispose](): void {
    this.#reader.close();
  }

  // Between prompts the terminal is not in raw mode, so that Ctrl-C is a signal for whoever is at work.
  #listen(on: boolean): void {
    if (this.interactive) process.stdin.setRawMode(on);
    if (on) this.#reader.resume();
    else this.#reader.pause();
  }

  #leaveOnSecondInterrupt(): void {
    let warned = false;
    this.#reader.on('SIGINT', () => {
      if (this.#reader.line === '' && warned) {
        this.#reader.close();
        return;
      }
      warned = this.#reader.line === '';
      // Starts a fresh line, as a shell does; readline has no call for it but the keys themselves.
      this.#reader.write(null, { ctrl: true, name: 'e' });
      this.#reader.write(null, { ctrl: true, name: 'u' });
      note(warned ? '\n(Ctrl-C again, Ctrl-D or /exit leaves)' : '');
      this.#reader.prompt();
    });
    this.#reader.on('line', () => {
      warned = false;
    });
  }
}
