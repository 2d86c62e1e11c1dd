#!/usr/bin/env node
/** The sigmoe command: the list of commands, and how any of them ends. */
import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { benchCommand } from './commands/bench.js';
import { chatCommand } from './commands/chat.js';
import { devicesCommand } from './commands/devices.js';
import { generateCommand } from './commands/generate.js';
import { inspectCommand } from './commands/inspect.js';
import { pullCommand } from './commands/pull.js';
import { serveCommand } from './commands/serve.js';
import { describeFailure } from './failure.js';
import { note, watchOutput } from './terminal.js';

const { version, description } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
  description: string;
};

function buildProgram(): Command {
  const program = new Command('sigmoe').description(description).version(version).enablePositionalOptions();
  const commands = [
    generateCommand(),
    chatCommand(),
    serveCommand(),
    inspectCommand(),
    benchCommand(),
    devicesCommand(),
    pullCommand(),
  ];
  for (const command of commands) program.addCommand(command);
  for (const command of withSubcommands(program)) {
    command
      .optionsGroup('Options:')
      .option('--verbose', 'show where an error came from')
      .exitOverride()
      .configureOutput({
        // Commander puts its suggestion on a second line.
        outputError: (text, print) =>
          print(
            `sigmoe: ${text
              .trim()
              .replace(/^error: /, '')
              .replace(/\s*\n\s*/g, ' ')}\n`,
          ),
      });
  }
  return program;
}

function withSubcommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(withSubcommands)];
}

/** Published commands of vLLM spell some flags with underscores: --gpu_memory_utilization. */
function withDashes(words: string[]): string[] {
  if (words[2] !== 'serve' && words[2] !== 'bench') return words;
  return words.map((word) => word.replace(/^--[a-z][\w-]*/, (flag) => flag.replaceAll('_', '-')));
}

watchOutput();
try {
  await buildProgram().parseAsync(withDashes(process.argv));
} catch (error) {
  const { line, status } = describeFailure(error);
  if (line !== '') note(`sigmoe: ${line}`);
  if (process.argv.includes('--verbose') && error instanceof Error && line !== '') note(error.stack ?? '');
  process.exitCode = status;
}
