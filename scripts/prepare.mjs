// Makes what a command needs and does not make it twice: npm packages, the native addon, the compiled TypeScript.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkNode, findBuildTools, npmCommand, readJson, root, runStep, ScriptError, withBuildLock } from './tools.mjs';

const addon = join(root, 'build/Release/sigmoe.node');

/** Everything needed to run the library and the CLI. */
export function prepare() {
  checkNode();
  return withBuildLock(async () => {
    await ensurePackages();
    await ensureAddon();
    await ensureLibrary();
  });
}

/** The packages and the compiled TypeScript, without the addon. */
export function prepareLibrary() {
  checkNode();
  return withBuildLock(async () => {
    await ensurePackages();
    await ensureLibrary();
  });
}

/** The npm packages alone: enough for the linter. */
export function preparePackages() {
  checkNode();
  return withBuildLock(ensurePackages);
}

async function ensurePackages() {
  if (packagesAreCurrent()) return;
  const [npm, ...args] = npmCommand();
  // Without install scripts: no package here has one that is needed. With the dev packages, whatever npm's configuration says.
  await runStep(
    'installing npm packages into node_modules (once)',
    npm,
    [...args, 'ci', '--ignore-scripts', '--include=dev', '--include=optional', '--no-audit', '--no-fund'],
    { log: join(root, 'build/npm.log') },
  );
}

// npm leaves a list of what it installed: compare it with the lock file, so that a finished install is never repeated.
function packagesAreCurrent() {
  const installedList = join(root, 'node_modules/.package-lock.json');
  if (!existsSync(installedList)) return false;
  const installed = readJson(installedList).packages;
  return Object.entries(readJson(join(root, 'package-lock.json')).packages).every(
    ([path, wanted]) =>
      path === '' || (installed[path] === undefined ? wanted.optional === true : installed[path].version === wanted.version),
  );
}

async function ensureAddon() {
  const stamp = join(root, 'build/addon.stamp');
  if (existsSync(addon) && isNewer(stamp, ['CMakeLists.txt', 'package-lock.json', 'csrc', 'kernels'])) return;
  const tools = findBuildTools();
  const began = new Date();
  await runStep(
    `compiling the native addon with ${tools.compiler} (once; some three minutes on two cores, it holds a kernel set per CPU generation)`,
    process.execPath,
    [join(root, 'node_modules/cmake-js/bin/cmake-js'), 'build', '--generator', cmakeGenerator(join(root, 'build'), tools)],
    { log: join(root, 'build/addon.log'), env: tools.env },
  );
  // A symbol that nobody defines is found by loading, not by linking: Node's own symbols are undefined in every addon.
  const { status, stderr } = spawnSync(process.execPath, ['-e', `require(${JSON.stringify(addon)})`], { encoding: 'utf8' });
  if (status !== 0)
    throw new ScriptError(`the native addon was built but does not load: ${/Error: .*/.exec(stderr)?.[0] ?? stderr}`);
  writeStamp(stamp, began);
}

async function ensureLibrary() {
  const stamp = join(root, 'build/library.stamp');
  if (existsSync(join(root, 'dist/index.js')) && isNewer(stamp, ['lib', 'tsconfig.json', 'package-lock.json'])) return;
  const began = new Date();
  await runStep('compiling the TypeScript library', process.execPath, [join(root, 'node_modules/typescript/bin/tsc')], {
    log: join(root, 'build/library.log'),
  });
  writeStamp(stamp, began);
}

/** Configures a CMake build folder and builds one target of it; CMake finds out itself what is out of date. */
export async function buildNative(what, folder, target, settings) {
  const tools = findBuildTools();
  const build = join(root, folder);
  const options = { log: `${build}.log`, env: tools.env };
  await withBuildLock(async () => {
    const generator = cmakeGenerator(build, tools);
    await runStep(`configuring ${folder}`, 'cmake', ['-S', root, '-B', build, '-G', generator, ...settings], options);
    await runStep(`${what} with ${tools.compiler} in ${folder}`, 'cmake', ['--build', build, '--target', target], options);
  });
}

// The generator a folder was configured with, or this machine's best. A folder that was copied from elsewhere still names
// its old place, which CMake refuses: forget its configuration.
function cmakeGenerator(build, tools) {
  const cache = join(build, 'CMakeCache.txt');
  if (!existsSync(cache)) return tools.generator;
  const text = readFileSync(cache, 'utf8');
  const value = (name) => new RegExp(`^${name}:INTERNAL=(.*)$`, 'm').exec(text)?.[1];
  if (value('CMAKE_HOME_DIRECTORY') === root && value('CMAKE_CACHEFILE_DIR') === build) {
    return value('CMAKE_GENERATOR') ?? tools.generator;
  }
  rmSync(cache);
  rmSync(join(build, 'CMakeFiles'), { recursive: true, force: true });
  return tools.generator;
}

// A stamp carries the time a build began: a source edited while it ran is newer and is built again.
function writeStamp(path, time) {
  writeFileSync(path, '');
  utimesSync(path, time, time);
}

function isNewer(stamp, sources) {
  return existsSync(stamp) && sources.every((source) => newestChange(join(root, source)) <= statSync(stamp).mtimeMs);
}

// Folders count too: their time changes when a file is added or removed.
function newestChange(path) {
  const stat = statSync(path);
  if (!stat.isDirectory()) return stat.mtimeMs;
  return Math.max(stat.mtimeMs, ...readdirSync(path).map((name) => newestChange(join(path, name))));
}
