/** The pages of docs/ and their code blocks. A block under a line that begins "*Checked, not run:" is not run by the tests. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../helpers/files.js';

export interface Block {
  /** Where it stands, for messages: "serving.md:12". */
  place: string;
  language: string;
  text: string;
  run: boolean;
}

export interface Page {
  name: string;
  text: string;
  blocks: Block[];
}

const NOT_RUN = /^\*Checked, not run: .+\.\*$/;

export const pages: Page[] = readdirSync(join(root, 'docs'))
  .filter((name) => name.endsWith('.md'))
  .map((name) => {
    const text = readFileSync(join(root, 'docs', name), 'utf8');
    return { name, text, blocks: blocksOf(name, text) };
  });

/** Pages outside of docs/ whose blocks are read, not run; the program of the README is run by test/cli/readme.test.ts. */
export const otherPages: Page[] = ['README.md', 'packages/nano/README.md', 'packages/linux-x64-cuda/README.md'].map((name) => {
  const text = readFileSync(join(root, name), 'utf8');
  return { name, text, blocks: blocksOf(name, text) };
});

function blocksOf(name: string, text: string): Block[] {
  const blocks: Block[] = [];
  const lines = text.split('\n');
  let above = '';
  for (let i = 0; i < lines.length; i++) {
    const [, language] = /^```(\w*)/.exec(lines[i] ?? '') ?? [];
    if (language === undefined) {
      if (lines[i] !== '') above = lines[i] ?? '';
      continue;
    }
    const begin = i + 1;
    do i++;
    while (i < lines.length && lines[i] !== '```');
    blocks.push({ place: `${name}:${begin}`, language, text: lines.slice(begin, i).join('\n'), run: !NOT_RUN.test(above) });
    above = '';
  }
  return blocks;
}

/** The command lines of a shell block: continued lines joined, comments and empty lines left out. */
export function commandLines(text: string): string[] {
  return text
    .replace(/\\\n\s*/g, ' ')
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.trim().startsWith('#'));
}
