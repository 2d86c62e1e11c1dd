// npm run demo: from a fresh clone to a streamed answer of the bundled model.
import { join } from 'node:path';
import { prepare } from './prepare.mjs';
import { root, run, runMain, say } from './tools.mjs';

const question = process.argv.slice(2).join(' ') || 'What are the symptoms of diabetes?';

await runMain(async () => {
  await prepare();
  const args = ['generate', 'models/nano', question, '--temperature', '0', '--max-tokens', '120', '--stats'];
  say(`sigmoe ${args.map((arg) => (/[\s?]/.test(arg) ? JSON.stringify(arg) : arg)).join(' ')}`);
  return (await run(process.execPath, [join(root, 'dist/cli/main.js'), ...args])).status;
});
