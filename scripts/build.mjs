// npm run build: everything the library and the CLI need, built where it is out of date.
import { prepare } from './prepare.mjs';
import { runMain, say } from './tools.mjs';

await runMain(async () => {
  await prepare();
  say('up to date');
});
