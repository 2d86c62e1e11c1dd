/** Command lines of help texts and docs, read as the command line itself reads them, without being carried out. */
import { CommanderError } from 'commander';
import { buildProgram, withSubcommands } from '../../lib/cli/program.js';

/** Throws what the command line would complain of. */
export async function checkCommandLine(line: string): Promise<void> {
  const [, ...words] = shellWords(line);
  const program = buildProgram();
  for (const command of withSubcommands(program)) {
    if (command !== program && !(command.commands.length > 0 && command.registeredArguments.length === 0))
      command.action(() => {});
    command.configureOutput({ writeErr: () => {}, writeOut: () => {} });
  }
  // As main.ts does for the flags of vLLM.
  const dashed = ['serve', 'bench'].includes(words[0] ?? '')
    ? words.map((word) => word.replace(/^--[a-z][\w-]*/, (flag) => flag.replaceAll('_', '-')))
    : words;
  try {
    await program.parseAsync(dashed, { from: 'user' });
  } catch (error) {
    // Asking for help ends the parsing, too.
    if (!(error instanceof CommanderError && error.exitCode === 0)) throw error;
  }
}

/** The words of a line of a shell: quotes hold words together, a comment ends the line. */
export function shellWords(line: string): string[] {
  const words: string[] = [];
  for (const [word] of line.matchAll(/(?:"[^"]*"|'[^']*'|[^\s"'#]|(?<=\S)#)+|#.*/g)) {
    if (word.startsWith('#')) break;
    words.push(word.replace(/"([^"]*)"|'([^']*)'/g, (_, double, single) => double ?? single));
  }
  return words;
}

/** The lines under "Example:" at the end of a help text. */
export function examplesIn(help: string): string[] {
  const [, examples = ''] = /\nExamples?:\n([\s\S]*)$/.exec(help) ?? [];
  return examples
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line.startsWith('sigmoe '));
}
