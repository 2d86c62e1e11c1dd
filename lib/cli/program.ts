/** The commands of sigmoe, with what all of them have in common. */
import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { benchCommand } from './commands/bench.js';
import { bundleCommand } from './commands/bundle.js';
import { chatCommand } from './commands/chat.js';
import { devicesCommand } from './commands/devices.js';
import { doctorCommand } from './commands/doctor.js';
import { generateCommand } from './commands/generate.js';
import { inspectCommand } from './commands/inspect.js';
import { pullCommand } from './commands/pull.js';
import { quantizeCommand } from './commands/quantize.js';
import { selftestCommand } from './commands/selftest.js';
import { serveCommand } from './commands/serve.js';

const { version, description } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
  description: string;
};

export function buildProgram(): Command {
  const program = new Command('sigmoe')
    .description(description)
    .version(version)
    .enablePositionalOptions()
    .addHelpText('after', '\nExample:\n  sigmoe generate models/nano "What is asthma?"');
  const commands = [
    generateCommand(),
    chatCommand(),
    serveCommand(),
    inspectCommand(),
    benchCommand(),
    devicesCommand(),
    doctorCommand(),
    selftestCommand(),
    quantizeCommand(),
    pullCommand(),
    bundleCommand(),
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

/** A command and all those below it. */
export function withSubcommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(withSubcommands)];
}
