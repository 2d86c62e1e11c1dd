// npm run package:cuda: fills packages/linux-x64-cuda with the CUDA library, compiled by the toolkit of this machine (minutes).
// No part of any other command: most machines have no toolkit, and nothing else needs one.
import { copyFileSync, existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { neededVersions } from './prebuild-floor.mjs';
import { buildNative } from './prepare.mjs';
import { root, run, runMain, ScriptError, say } from './tools.mjs';

// Above this a package is split by architecture: -DSIGMOE_CUDA_ARCHITECTURES in two builds, two packages.
const MAX_BYTES = 100e6;

await runMain(async () => {
  const built = join(root, 'build-cuda/kernels/cuda/libsigmoe_cuda.so');
  try {
    await buildNative('compiling the CUDA backend', 'build-cuda', 'sigmoe_cuda', [
      '-DSIGMOE_CUDA=ON',
      '-DCMAKE_BUILD_TYPE=Release',
      ...process.argv.slice(2),
    ]);
  } catch (error) {
    if (existsSync(built)) throw error;
    throw new ScriptError(
      `${error.message}\nThe toolkit of CUDA 12 or 13 is needed: its nvcc on the PATH, or CUDA_HOME (build-cuda.log)`,
    );
  }
  const library = join(root, 'packages/linux-x64-cuda/libsigmoe_cuda.so');
  copyFileSync(built, library);
  if ((await run('strip', ['--strip-unneeded', library])).status !== 0) throw new ScriptError(`${library}: strip failed`);
  const { size } = statSync(library);
  const needed = neededVersions(library);
  say(`${library}: ${(size / 1e6).toFixed(1)} MB${needed ? `, needs glibc ${needed.GLIBC}, GLIBCXX ${needed.GLIBCXX}` : ''}`);
  if (size > MAX_BYTES) throw new ScriptError(`${library} is larger than ${MAX_BYTES / 1e6} MB: split it by architecture`);
});
