// What `npm pack` does first (prepack): the compiled library without leftovers, its CommonJS entry, the prebuilt addon.
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { buildCommonJs } from './package-cjs.mjs';
import { prebuild } from './prebuild.mjs';
import { prepareLibrary } from './prepare.mjs';
import { root, runMain, say } from './tools.mjs';

await runMain(async () => {
  await prepareLibrary();
  removeLeftovers();
  await buildCommonJs();
  // CI makes the files in a container of an old glibc and packs them elsewhere.
  if (process.env.SIGMOE_KEEP_PREBUILDS) say('prebuilds: as they are');
  else await prebuild({ anyGlibc: true });
});

// Compiled files whose source is gone: tsc does not remove them, and the package takes all of dist.
function removeLeftovers() {
  for (const name of readdirSync(join(root, 'dist'), { recursive: true })) {
    const source = name.replace(/(\.d\.ts|\.js|\.js\.map)$/, '.ts');
    if (source !== name && !existsSync(join(root, 'lib', source))) rmSync(join(root, 'dist', name));
  }
}
