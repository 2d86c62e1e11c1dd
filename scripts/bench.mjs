// npm run bench -- ...: `sigmoe bench` on an up-to-date build.
import { join } from 'node:path';
import { prepare } from './prepare.mjs';
import { root, run, runMain } from './tools.mjs';

await runMain(async () => {
  await prepare();
  return (await run(process.execPath, [join(root, 'dist/cli/main.js'), 'bench', ...process.argv.slice(2)])).status;
});
