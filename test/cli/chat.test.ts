import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { nano, root } from '../helpers/files.js';
import { complaints, ended, main, sigmoe } from './run.js';

const brief = ['--temperature', '0', '--max-tokens', '12'];

describe('through a pipe', () => {
  test('one answer a line, the history growing with every turn', async () => {
    const result = await sigmoe(['chat', nano, ...brief, '--stats'], 'What is asthma?\n\nAnd diabetes?\n');
    expect(result.status).toBe(0);
    const prompts = complaints(result).map((line) => Number(/prompt of (\d+)/.exec(line)?.[1]));
    expect(prompts).toHaveLength(2);
    expect(prompts[1]).toBeGreaterThan((prompts[0] ?? 0) + 12); // the first question and its answer came along
  });

  test('/reset forgets, /system replaces, /exit leaves', async () => {
    const script = [
      'What is asthma?',
      '/reset',
      'What is asthma?',
      '/system',
      '/system Be brief.',
      '/system',
      '/help',
      '/nope',
      '/exit',
      'never',
    ];
    const result = await sigmoe(['chat', nano, ...brief], `${script.join('\n')}\n`);
    const [first, second, ...more] = result.stdout.trimEnd().split('\n');
    expect(second).toBe(first);
    expect(more).toEqual([]);
    const notes = complaints(result);
    expect(notes).toContain('conversation forgotten');
    expect(notes).toContain('You are AntAngelMed, a helpful medical assistant.');
    expect(notes).toContain('Be brief.');
    expect(notes).toContain('no command /nope; /help lists them');
    expect(result.status).toBe(0);
  });

  test('a message that does not fit is reported and the conversation goes on', async () => {
    const result = await sigmoe(['chat', nano, ...brief], `${'headache '.repeat(5000)}\nWhat is asthma?\n`);
    expect(complaints(result)).toEqual([expect.stringContaining('the message was not kept')]);
    expect(result.stdout.trimEnd().split('\n')).toHaveLength(1);
    expect(result.status).toBe(0);
  });
});

// `script` of util-linux lends a terminal.
const terminal = spawnSync('script', ['--version']).status === 0;

describe.skipIf(!terminal)('on a terminal', () => {
  test('Ctrl-C stops the answer, not the program; twice at the prompt leaves', async () => {
    const session = open(['chat', nano, '--ignore-eos']);
    await session.shows('> ');
    session.type('What is asthma?\r');
    await session.shows(/asthma\?\s/); // the echo; what follows is the answer
    await session.shows(/\w+ \w+/);
    session.type('\x03');
    await session.shows('> ');
    session.type('half a mess');
    await session.shows('half a mess');
    session.type('\x03'); // clears the line
    session.type('\x03');
    await session.shows('Ctrl-C again');
    session.type('\x03');
    expect((await session.result).status).toBe(0);
  });

  test('the up key recalls a message, Ctrl-D leaves', async () => {
    const session = open(['chat', nano, ...brief]);
    await session.shows('> ');
    session.type('/system\r');
    await session.shows('AntAngelMed');
    await session.shows('> ');
    session.type('\x1b[A');
    await session.shows('/system');
    session.type('\x15');
    session.type('\x04');
    expect((await session.result).status).toBe(0);
  });

  test('loading shows a progress bar', async () => {
    const session = open(['generate', nano, 'What is asthma?', ...brief]);
    await session.shows('loading');
    expect((await session.result).status).toBe(0);
  });
});

function open(args: string[]) {
  // exec: a shell left in between would take the Ctrl-C as well, and end with its own status.
  const command = `exec ${[process.execPath, main, ...args].map((word) => `'${word}'`).join(' ')}`;
  const child: ChildProcessWithoutNullStreams = spawn('script', ['-qec', command, '/dev/null'], { cwd: root });
  let seen = '';
  let wake = () => {};
  child.stdout.on('data', (data) => {
    seen += data;
    wake();
  });
  child.stdout.on('end', () => wake());
  return {
    result: ended(child),
    type(keys: string): void {
      child.stdin.write(keys);
    },
    /** Waits for words, and forgets what came before them. */
    async shows(words: string | RegExp): Promise<void> {
      for (;;) {
        const at = typeof words === 'string' ? seen.indexOf(words) : seen.search(words);
        if (at >= 0) {
          seen = seen.slice(at + (typeof words === 'string' ? words.length : 1));
          return;
        }
        if (child.stdout.readableEnded) throw new Error(`the session ended without ${words}: ${JSON.stringify(seen)}`);
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    },
  };
}
