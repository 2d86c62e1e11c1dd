/** sigmoe devices: what a model could run on here, and why not on the rest. */
import { Command } from 'commander';
import { devices } from '../../index.js';
import { json } from '../format.js';
import { write } from '../terminal.js';

export function devicesCommand(): Command {
  return new Command('devices')
    .summary('list the devices of this machine')
    .description('Lists the devices that a model could run on here, and for the others the reason why not.')
    .option('--json', 'print a JSON array')
    .addHelpText('after', '\nExample:\n  sigmoe devices --json')
    .action(async (flags: { json?: boolean }) => {
      const found = devices();
      const lines = found.map(({ device, available, detail }) => `${device}: ${available ? '' : 'not available, '}${detail}`);
      await write(flags.json ? `${json(found, 2)}\n` : `${lines.join('\n')}\n`);
    });
}
