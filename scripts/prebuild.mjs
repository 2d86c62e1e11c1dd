// npm run prebuildify: the addon of this machine as a prebuilt file, prebuilds/linux-<arch>/sigmoe.glibc.node, and the host side
// of the Ascend backend beside it, stripped and checked for the oldest system they run on (not with --any-glibc). With
// --arch arm64 (Debian: g++-12-aarch64-linux-gnu) they are cross-compiled.
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { checkFloor, neededVersions } from './prebuild-floor.mjs';
import { prepare, preparePackages } from './prepare.mjs';
import { findOnPath, root, runMain, runStep, ScriptError, say } from './tools.mjs';

// Ubuntu 22.04, Debian 12, RHEL 9 (its libstdc++ needs what the container of CI links in).
const GLIBC = '2.34';

export async function prebuild({ arch = process.arch, out = root, anyGlibc = false } = {}) {
  const staging = join(root, 'build-prebuild', arch);
  const built = join(staging, 'build/Release');
  rmSync(built, { recursive: true, force: true });
  mkdirSync(built, { recursive: true });
  if (arch === process.arch) {
    await prepare();
    // A copy: prebuildify moves what it finds, and the local build stays in use.
    copyFileSync(join(root, 'build/Release/sigmoe.node'), join(built, 'sigmoe.node'));
  } else {
    await preparePackages();
    await crossCompile(arch, join(staging, 'build'));
  }
  const strip = arch === process.arch ? 'strip' : `${crossPrefix(arch)}-strip`;
  // prebuildify would have node-gyp compile; that is done, and `true` stands in for it.
  const options = ['--napi', '--strip', '--strip-bin', strip, '--tag-libc', '--node-gyp', 'true', '--name', 'sigmoe'];
  await runStep(
    `prebuildify for linux-${arch}`,
    process.execPath,
    [join(root, 'node_modules/prebuildify/bin.js'), ...options, '--arch', arch, '--cwd', staging, '--out', out],
    { log: join(root, 'build/prebuild.log') },
  );
  const folder = join(out, 'prebuilds', `linux-${arch}`);
  // The host side of the Ascend backend needs no toolkit: it opens Huawei's libraries where they are, and says so where not.
  const ascend = join(folder, 'libsigmoe_ascend.so');
  copyFileSync(join(arch === process.arch ? join(root, 'build/Release') : built, 'libsigmoe_ascend.so'), ascend);
  await runStep('stripping the Ascend host library', strip, [ascend], { log: join(root, 'build/prebuild.log') });
  for (const name of readdirSync(folder)) report(join(folder, name), anyGlibc);
}

function report(file, anyGlibc) {
  const size = `${(statSync(file).size / 1e6).toFixed(2)} MB`;
  const needed = neededVersions(file);
  if (needed === undefined) return say(`${file}: ${size}; what it needs was not checked, objdump is not on the PATH`);
  say(`${file}: ${size}, needs glibc ${needed.GLIBC}, GLIBCXX ${needed.GLIBCXX}`);
  if (!anyGlibc) checkFloor(file, needed, GLIBC);
}

function crossPrefix(arch) {
  const prefix = { arm64: 'aarch64-linux-gnu', x64: 'x86_64-linux-gnu' }[arch];
  if (prefix === undefined) throw new ScriptError(`--arch ${arch}: expected arm64 or x64`);
  return prefix;
}

async function crossCompile(arch, build) {
  const prefix = crossPrefix(arch);
  const cxx = findOnPath([`${prefix}-g++`, `${prefix}-g++-14`, `${prefix}-g++-13`, `${prefix}-g++-12`]);
  if (cxx === undefined)
    throw new ScriptError(`no cross compiler for ${arch}: apt install g++-12-${prefix.replaceAll('_', '-')}`);
  const settings = {
    CMAKE_SYSTEM_NAME: 'Linux',
    CMAKE_SYSTEM_PROCESSOR: prefix.split('-')[0],
    CMAKE_CXX_COMPILER: cxx,
    CMAKE_C_COMPILER: cxx.replace('g++', 'gcc'),
  };
  const cmakeJs = join(root, 'node_modules/cmake-js/bin/cmake-js');
  const generator = findOnPath(['ninja']) ? 'Ninja' : 'Unix Makefiles';
  const args = [
    'build',
    '--out',
    build,
    '--generator',
    generator,
    ...Object.entries(settings).map(([k, v]) => `--CD${k}=${v}`),
  ];
  await runStep(`cross-compiling the addon with ${cxx}`, process.execPath, [cmakeJs, ...args], { log: `${build}.log` });
  if (!existsSync(join(build, 'Release/sigmoe.node'))) throw new ScriptError(`${build}/Release holds no addon`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await runMain(async () => {
    const { values } = parseArgs({
      options: { arch: { type: 'string' }, out: { type: 'string' }, 'any-glibc': { type: 'boolean' } },
    });
    await prebuild({ arch: values.arch, out: values.out, anyGlibc: values['any-glibc'] });
  });
}
