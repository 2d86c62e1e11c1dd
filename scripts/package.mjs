// What `npm pack` does first (prepack): the compiled library without leftovers, its CommonJS entry, the prebuilt addon.
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { buildCommonJs } from './package-cjs.mjs';
import { prebuild } from './prebuild.mjs';
import { prepare } from './prepare.mjs';
import { root, runMain, say } from './tools.mjs';

await runMain(async () => {
  await prepare();
  removeLeftovers();
  await buildCommonJs();
  const folder = join(root, 'prebuilds', `linux-${process.arch}`);
  // A file that CI made in its container of an old glibc is better than what this machine would make.
  if (existsSync(folder) && readdirSync(folder).some((name) => name.endsWith('.node'))) say(`prebuilt: ${folder}, as it is`);
  else await prebuild();
});

// Compiled files whose source is gone: tsc does not remove them, and the package takes all of dist.
function removeLeftovers() {
  for (const name of readdirSync(join(root, 'dist'), { recursive: true })) {
    const source = name.replace(/(\.d\.ts|\.js|\.js\.map)$/, '.ts');
    if (source !== name && !existsSync(join(root, 'lib', source))) rmSync(join(root, 'dist', name));
  }
}
