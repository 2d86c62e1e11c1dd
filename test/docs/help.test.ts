/** Every command's --help ends with an example that the command line understands. */
import { expect, test } from 'vitest';
import { buildProgram, withSubcommands } from '../../lib/cli/program.js';
import { checkCommandLine, examplesIn, shellWords } from './commands.js';

const helpTexts = withSubcommands(buildProgram()).map((command) => {
  let help = '';
  command.configureOutput({
    writeOut: (text) => {
      help += text;
    },
  });
  command.outputHelp();
  const names = [];
  for (let each: typeof command | null = command; each !== null; each = each.parent) names.unshift(each.name());
  return { name: names.join(' '), help };
});

test('all commands are seen', () => {
  expect(helpTexts.length).toBeGreaterThan(14);
});

test.each(helpTexts)('$name --help', async ({ name, help }) => {
  const examples = examplesIn(help);
  expect(examples.length).toBeGreaterThan(0);
  for (const example of examples) {
    expect(example).toContain(name);
    await checkCommandLine(example);
  }
});

test('what the command line does not understand is found', async () => {
  await expect(checkCommandLine('sigmoe generate models/nano "x" --max-tokes 3')).rejects.toThrow('--max-tokens');
  await expect(checkCommandLine('sigmoe inspect')).rejects.toThrow("missing required argument 'model'");
  await expect(checkCommandLine('sigmoe serf')).rejects.toThrow('serf');
  expect(shellWords(`sigmoe chat m --system "a 'b' c" -x 'd e'f # g`)).toEqual([
    'sigmoe',
    'chat',
    'm',
    '--system',
    "a 'b' c",
    '-x',
    'd ef',
  ]);
});
