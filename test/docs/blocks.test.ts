/** Every code block of docs/ is run; those marked "Checked, not run" are read: commands by the command line, data by its parser. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { root } from '../helpers/files.js';
import { checkCommandLine } from './commands.js';
import { type Block, commandLines, otherPages, pages } from './pages.js';
import { Shell } from './shell.js';

const hasCurl = spawnSync('curl', ['--version']).status === 0;
if (!hasCurl) console.log('blocks with curl are not run: curl is not on the PATH');

/** What is not a program: nothing can be wrong with it that a test could see. */
const TEXT = new Set(['', 'text', 'dockerfile']);

/** sigmoe where a command begins, up to where the next one does. */
const COMMAND = /(?:^(?:\w+=(?:\$\([^)]*\)|\S+) )*|npx |\| |&& |ExecStart=\S*\/)(sigmoe .*?)(?: &| \| .*| > .*)?$/;

describe.each(pages.filter(({ blocks }) => blocks.length > 0))('docs/$name', ({ name, blocks }) => {
  const programs = blocks.filter(({ language }) => language === 'js');
  test.runIf(programs.length > 0)('programs run', () => {
    for (const [index, block] of programs.entries()) runProgram(block, `${name}-${index}`);
  });

  const shell = blocks.filter(({ language, run }) => language === 'sh' && run);
  test.runIf(shell.length > 0)('shell blocks run, in order', { timeout: 180_000 }, async () => {
    const terminal = await Shell.open();
    try {
      for (const { place, text } of shell) {
        if (/\bcurl\b/.test(text) && !hasCurl) continue;
        const { status, stderr, stdout } = await terminal.run(text);
        expect({ place, status, output: status === 0 ? '' : stdout + stderr }).toEqual({ place, status: 0, output: '' });
      }
      expect(await terminal.stop()).toBe(0);
    } finally {
      await terminal.close();
    }
  });

  test('commands are understood and data is well formed', () => readAll(blocks));
});

test.each(otherPages)('$name: commands are understood', ({ blocks }) => readAll(blocks));

async function readAll(blocks: Block[]): Promise<void> {
  for (const { place, language, text } of blocks) {
    if (language === 'json') expect(() => JSON.parse(text), place).not.toThrow();
    else if (language === 'yaml') expect(parse(text), place).toBeDefined();
    else if (language === 'sh' || language === 'ini') {
      for (const line of commandLines(text)) {
        const [, command] = COMMAND.exec(line) ?? [];
        if (command !== undefined) await expect(checkCommandLine(command), `${place}: ${line}`).resolves.toBeUndefined();
      }
    } else expect(language === 'js' || TEXT.has(language), `${place}: language ${language}`).toBe(true);
  }
}

// Inside the package, where its own name can be imported.
function runProgram({ place, text, run }: Block, name: string): void {
  const folder = join(root, 'build/docs');
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `${name}.${/\brequire\(/.test(text) ? 'cjs' : 'mjs'}`);
  writeFileSync(path, text);
  const { status, stderr } = spawnSync(process.execPath, [...(run ? [] : ['--check']), path], { cwd: root, encoding: 'utf8' });
  expect({ place, status, stderr }).toEqual({ place, status: 0, stderr: '' });
}
