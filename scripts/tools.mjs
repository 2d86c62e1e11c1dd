// What every script needs: messages, child processes, the tools of this machine, one build at a time.
// Node's own modules only: these scripts run before anything is installed.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createWriteStream, mkdirSync, readFileSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..');
export const cores = os.availableParallelism();

/** A failure the user can act on: printed as it stands, without a stack. `essence`: what the program that failed said. */
export class ScriptError extends Error {
  constructor(message, essence = '') {
    super(message);
    this.essence = essence;
  }
}

export function say(line) {
  process.stderr.write(`[sigmoe] ${line}\n`);
}

/** Runs a script's main function; its exit status becomes the process's. */
export async function runMain(main) {
  try {
    process.exitCode = (await main()) ?? 0;
  } catch (error) {
    say(error instanceof ScriptError ? error.message : (error.stack ?? String(error)));
    process.exitCode = 1;
  }
}

function seconds(since) {
  return `${((performance.now() - since) / 1000).toFixed(1)} s`;
}

/**
 * Runs a program with the terminal as its own. Resolves with its exit status (128 + n for signal n, 124 when the time
 * ran out), and with its output too where `capture` is set: that output is then both shown and kept.
 */
export function run(program, args, { env = {}, limitSeconds = 0, capture = false } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['inherit', capture ? 'pipe' : 'inherit', 'inherit'],
    });
    let output = '';
    child.stdout?.on('data', (data) => {
      output += data;
      process.stdout.write(data);
    });
    let timedOut = false;
    const timer =
      limitSeconds > 0 &&
      setTimeout(() => {
        timedOut = true;
        child.kill('SIGKILL');
      }, limitSeconds * 1000);
    const forget = ignoreInterrupts();
    child.on('error', (error) => {
      forget();
      reject(new ScriptError(`${program} could not be started: ${error.message}`));
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      forget();
      resolve({ status: timedOut ? 124 : (code ?? 128 + os.constants.signals[signal]), output });
    });
  });
}

// Ctrl-C reaches the child as well, which decides what it means; this process waits for its verdict.
function ignoreInterrupts() {
  const ignore = () => {};
  process.on('SIGINT', ignore);
  return () => process.off('SIGINT', ignore);
}

/**
 * Runs one build step quietly: its output goes to `log`, and only its end is shown, or what it said when it failed.
 * Progress such as "[12/80]" or "[ 15%]" is shown on a terminal while it runs.
 */
export async function runStep(what, program, args, { log, env = {} }) {
  const began = performance.now();
  say(`${what} ...`);
  mkdirSync(dirname(log), { recursive: true });
  const file = createWriteStream(log);
  let output = '';
  const status = await new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd: root, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
    const take = (data) => {
      file.write(data);
      output += data;
      const progress = process.stderr.isTTY && [...String(data).matchAll(/^\[\s*(\d+\/\d+|\d+%)\]/gm)].at(-1);
      if (progress) process.stderr.write(`\r         ${progress[1]} `);
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    child.on('error', (error) => reject(new ScriptError(`${program} could not be started: ${error.message}`)));
    child.on('close', (code, signal) => resolve(code ?? 128 + os.constants.signals[signal]));
  });
  file.end();
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
  if (status !== 0) {
    const said = essence(output);
    process.stderr.write(`${said}\n`);
    throw new ScriptError(`failed: ${what} (exit status ${status}, all of its output: ${log})`, said);
  }
  say(`done in ${seconds(began)}`);
}

// The lines that say what is wrong: the first errors, of which those after are mostly echoes, or else the end.
function essence(output) {
  const lines = output.trimEnd().split('\n');
  const errors = lines.filter((line) => /\berror\b/i.test(line)).slice(0, 12);
  return (errors.length > 0 ? errors : lines.slice(-20)).join('\n');
}

// ---- the tools of this machine -----------------------------------------------------------------------------------

/** The version a program reports about itself, as numbers; undefined when it cannot be run. */
function versionOf(program, args) {
  const { status, stdout } = spawnSync(program, args, { encoding: 'utf8' });
  const match = status === 0 && /\d+(?:\.\d+)+|^\d+$/m.exec(stdout);
  return match ? match[0].split('.').map(Number) : undefined;
}

function isAtLeast(version, [major, minor = 0]) {
  return version[0] > major || (version[0] === major && (version[1] ?? 0) >= minor);
}

export function findOnPath(names) {
  for (const name of names) {
    if (spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0) return name;
  }
  return undefined;
}

export function checkNode() {
  const version = process.versions.node.split('.').map(Number);
  if (!isAtLeast(version, [20, 17])) {
    throw new ScriptError(`Node 20.17 or newer is needed, this is ${process.versions.node}`);
  }
}

/**
 * The compiler, CMake and its generator, or an error naming everything that is missing at once.
 * `env` carries the choice of compiler to CMake.
 */
export function findBuildTools() {
  const missing = [];
  const apt = [];
  // A distribution whose g++ is old often has a newer one beside it under a longer name.
  const candidates = process.env.CXX ? [process.env.CXX] : ['g++', 'g++-14', 'g++-13', 'g++-12', 'clang++'];
  const found = candidates.map((cxx) => ({ cxx, version: versionOf(cxx, ['-dumpfullversion', '-dumpversion']) }));
  // clang++ reports its own version, and has had the C++20 used here since 14.
  const usable = found.find(({ cxx, version }) => version && isAtLeast(version, cxx.includes('clang') ? [14] : [12]));
  if (usable === undefined) {
    const seen = found.filter(({ version }) => version).map(({ cxx, version }) => `${cxx} ${version.join('.')}`);
    missing.push(`a C++20 compiler: g++ 12 or newer (found ${seen.join(', ') || 'none'})`);
    apt.push('g++');
  }
  const cmake = versionOf('cmake', ['--version']);
  if (cmake === undefined || !isAtLeast(cmake, [3, 20])) {
    missing.push(`CMake 3.20 or newer (found ${cmake?.join('.') ?? 'none'})`);
    apt.push('cmake');
  }
  const ninja = findOnPath(['ninja']);
  if (ninja === undefined && findOnPath(['make']) === undefined) {
    missing.push('make or ninja (found neither)');
    apt.push('make');
  }
  if (missing.length > 0) {
    throw new ScriptError(`cannot build, missing ${missing.join('; and ')}. On Debian or Ubuntu: apt install ${apt.join(' ')}`);
  }
  const { cxx, version } = usable;
  const cc = cxx.includes('clang') ? cxx.replace('clang++', 'clang') : cxx.replace('g++', 'gcc');
  return {
    compiler: `${cxx} ${version.join('.')}`,
    generator: ninja ? 'Ninja' : 'Unix Makefiles',
    env: { CXX: cxx, CC: process.env.CC ?? cc, CMAKE_BUILD_PARALLEL_LEVEL: String(cores) },
  };
}

/** npm as it was started, or the one on the PATH. */
export function npmCommand() {
  const script = process.env.npm_execpath;
  return script?.endsWith('npm-cli.js') ? [process.execPath, script] : ['npm'];
}

// ---- one build at a time -----------------------------------------------------------------------------------------

/**
 * Runs `body` while no other process does the same in this folder. The lock is a name in the kernel's abstract socket
 * space: it goes when its holder goes, however that ends, so no stale lock is ever left behind.
 */
export async function withBuildLock(body, folder = root) {
  const name = `\0sigmoe-build-${createHash('sha256').update(folder).digest('hex').slice(0, 32)}`;
  let waited = false;
  for (;;) {
    const lock = await hold(name);
    if (lock !== undefined) {
      try {
        return await body();
      } finally {
        lock.close();
      }
    }
    if (!waited) say('another build is running in this folder: waiting for it ...');
    waited = true;
    await released(name);
  }
}

// The listening server, or undefined while another process has the name.
function hold(name) {
  return new Promise((resolve, reject) => {
    const clients = new Set();
    const server = net.createServer((client) => {
      clients.add(client);
      client.on('error', () => {}).on('close', () => clients.delete(client));
    });
    server.on('error', (error) => (error.code === 'EADDRINUSE' ? resolve(undefined) : reject(error)));
    server.listen(name, () => {
      resolve({
        close() {
          server.close();
          for (const client of clients) client.destroy();
        },
      });
    });
  });
}

// Waits until the holder hangs up.
function released(name) {
  return new Promise((resolve) => {
    const client = net.connect(name);
    client.on('error', () => {}).on('close', resolve);
  });
}

export function readJson(path) {
  return JSON.parse(readFileSync(path, 'utf8'));
}
