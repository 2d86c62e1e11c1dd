// npm run lint: Biome, the layering, the C++ format. npm run format (--write) puts right what can be put right.
import { join } from 'node:path';
import { preparePackages } from './prepare.mjs';
import { root, run, runMain } from './tools.mjs';

await runMain(async () => {
  await preparePackages();
  const write = process.argv.includes('--write') ? ['--write'] : [];
  const checks = [
    ['node_modules/@biomejs/biome/bin/biome', 'check', ...write],
    ['scripts/check-layers.mjs'],
    ['scripts/check-format.mjs', ...write],
  ];
  let failed = 0;
  for (const [script, ...args] of checks) {
    if ((await run(process.execPath, [join(root, script), ...args])).status !== 0) failed++;
  }
  return failed === 0 ? 0 : 1;
});
