// npm test: types, TypeScript tests, C++ tests, the Ascend kernels on their CPU twin, and the loader under a hundred thousand
// mutated files with sanitizers on.
// Its end names whatever failed, and its last line is "N passed, N failed". One stage alone:
// node scripts/test.mjs types | unit | native | ascend | fuzz

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readDoctest, readMutants, readVitest } from './failures.mjs';
import { buildNative, prepare } from './prepare.mjs';
import { findBuildTools, root, run, runMain, runStep, ScriptError, say } from './tools.mjs';

const FUZZ_ITERATIONS = 100_000;
const UNIT_LIMIT_SECONDS = 2700;
const NATIVE_LIMIT_SECONDS = 1200;
const ASCEND_LIMIT_SECONDS = 600; // of each of its programs
const NATIVE_SETTINGS = ['-DSIGMOE_TESTS=ON', '-DSIGMOE_ASCEND=ON', '-DCMAKE_BUILD_TYPE=Release'];
// What of the engine's tests runs on the twin, too: whole models against the goldens, scheduler, prefix cache and speculation.
const ASCEND_ENGINE_TESTS = [
  'golden: BF16 logits*',
  'golden: W8A8*',
  'engine: a small pool*',
  'engine: sampled tokens*',
  'engine: stop ids*',
  'speculation: thinking budgets*',
];
const FUZZ_LIMIT_SECONDS = 600; // a loader that hangs on a file is a failure, not a long test

/** Each stage answers { passed, failures, note }, a line for each failure, or throws; a stage that throws counts as one. */
const stages = {
  types: async () => {
    // The tests are type-checked too: a type test that no longer compiles fails here.
    const config = existsSync(join(root, 'test/tsconfig.json')) ? 'test/tsconfig.json' : 'tsconfig.json';
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    await runStep(`checking types (${config})`, process.execPath, [tsc, '--noEmit', '-p', config], {
      log: join(root, 'build/types.log'),
    });
    return { passed: 0, failures: [], note: 'clean' };
  },

  unit: () => runVitest([], { limitSeconds: UNIT_LIMIT_SECONDS }),

  native: async () => {
    await buildNative('compiling the C++ tests', 'build-test', 'sigmoe_tests', NATIVE_SETTINGS);
    return await runNative('sigmoe_tests', [], { limitSeconds: NATIVE_LIMIT_SECONDS });
  },

  ascend: async () => {
    await buildNative('compiling the Ascend kernels for the CPU and their tests', 'build-test', 'sigmoe_ascend_check', [
      ...NATIVE_SETTINGS,
      '-DSIGMOE_ASCEND_MUTANTS=all',
    ]);
    const options = { limitSeconds: ASCEND_LIMIT_SECONDS };
    const parts = [await runNative('ascend/sigmoe_ascend_tests', [], options), await runMutants(options)];
    const twin = { SIGMOE_TEST_PATHS: 'ascend-twin', SIGMOE_TEST_DEVICE: 'ascend-twin' };
    const selected = `-tc=${ASCEND_ENGINE_TESTS.join(',')}`;
    const engine = await runNative('sigmoe_tests', [selected], { ...options, env: twin });
    const ran = engine.passed + engine.failures.length;
    if (ran !== ASCEND_ENGINE_TESTS.length)
      engine.failures.push(`${ran} of ${ASCEND_ENGINE_TESTS.length} selected engine tests ran`);
    const library = join(root, 'build-test/test/native/libsigmoe_ascend_twin.so');
    const env = { SIGMOE_ASCEND_TWIN_LIBRARY: library };
    parts.push(engine, await runVitest(['test/engine/ascend_twin.test.ts'], { ...options, env }));
    const passed = parts.reduce((total, part) => total + part.passed, 0);
    return { passed, failures: parts.flatMap((part) => part.failures) };
  },

  fuzz: async () => {
    if (!hasSanitizers()) {
      say('NOT RUN: the loader fuzz needs the address and undefined-behaviour sanitizers (libasan, libubsan) of this compiler');
      return { passed: 0, failures: [], note: 'NOT RUN, no sanitizer runtime' };
    }
    await buildNative('compiling the loader fuzzer with sanitizers', 'build-asan', 'sigmoe_fuzz_loader', [
      '-DSIGMOE_TESTS=ON',
      '-DSIGMOE_SANITIZE=address,undefined',
      '-DCMAKE_BUILD_TYPE=RelWithDebInfo',
    ]);
    const program = join(root, 'build-asan/test/native/sigmoe_fuzz_loader');
    const { status } = await run(program, [String(FUZZ_ITERATIONS)], { limitSeconds: FUZZ_LIMIT_SECONDS });
    if (status !== 0) throw new ScriptError(`the loader fuzz ended with status ${status}`);
    return { passed: 1, failures: [], note: `${FUZZ_ITERATIONS} files` };
  },
};

// Runs vitest on all test files, or on those named, and counts its tests.
async function runVitest(files, options) {
  const outcome = join(root, 'build/vitest-outcome.json');
  rmSync(outcome, { force: true });
  const vitest = join(root, 'node_modules/vitest/vitest.mjs');
  const reporters = ['--reporter=default', `--reporter=${join(root, 'scripts/vitest_outcome.mjs')}`];
  const env = { ...options.env, SIGMOE_VITEST_OUTCOME: outcome };
  const { status } = await run(process.execPath, [vitest, 'run', ...reporters, ...files], { ...options, env });
  const { passed, skipped, failures } = readVitest(outcome, status);
  return { passed, failures, note: skipped > 0 ? `${skipped} skipped` : '' };
}

// Runs one of the C++ test programs and counts its cases.
async function runNative(name, args, options) {
  const { status, output } = await run(join(root, 'build-test/test/native', name), args, { ...options, capture: true });
  return readDoctest(output, status);
}

// The tests of the Ascend kernels against kernels with a defect in each: one that goes unnoticed is a failure.
async function runMutants(options) {
  const program = join(root, 'build-test/test/native/ascend/sigmoe_ascend_mutants');
  const { status, output } = await run(program, [], { ...options, capture: true });
  return readMutants(output, status);
}

// Compiles, links and runs a two-line program: the only proof that the runtime is there.
function hasSanitizers() {
  const { env } = findBuildTools();
  mkdirSync(join(root, 'build'), { recursive: true });
  const [source, program] = [join(root, 'build/sanitizer-check.cpp'), join(root, 'build/sanitizer-check')];
  writeFileSync(source, 'int main(int n, char**) { return n - 1; }\n');
  const compiled = spawnSync(env.CXX, ['-fsanitize=address,undefined', source, '-o', program], { stdio: 'ignore' });
  return compiled.status === 0 && spawnSync(program, { stdio: 'ignore' }).status === 0;
}

await runMain(async () => {
  const asked = process.argv.slice(2);
  const unknown = asked.find((name) => !Object.hasOwn(stages, name));
  if (unknown !== undefined) throw new ScriptError(`no stage ${unknown}; there are ${Object.keys(stages).join(', ')}`);
  const [lines, failed] = [[], []];
  let total = 0;
  let begin = Date.now();
  const count = (name, { passed, failures, note }) => {
    total += passed;
    failed.push(...failures.map((failure) => `  ${name.padEnd(8)}${failure}`));
    const took = `${Math.round((Date.now() - begin) / 1000)} s`;
    lines.push(`  ${name.padEnd(8)}${passed} passed, ${failures.length} failed (${note ? `${note}, ` : ''}${took})`);
  };
  const attempt = async (name, body) => {
    begin = Date.now();
    try {
      count(name, await body());
    } catch (error) {
      say(error instanceof ScriptError ? error.message : error.stack);
      const said = error.essence ? `\n${error.essence}`.replaceAll('\n', '\n    ') : '';
      count(name, { passed: 0, failures: [error.message.split('\n', 1)[0] + said], note: 'did not run to its end' });
    }
  };
  // Without a build the stages that do not need it still run, so that one report names everything that is wrong.
  await attempt('build', async () => {
    await prepare();
    return { passed: 0, failures: [], note: 'up to date' };
  });
  for (const name of asked.length > 0 ? asked : Object.keys(stages)) await attempt(name, stages[name]);
  if (failed.length > 0) console.log(`\nfailed:\n${failed.join('\n')}`);
  console.log(`\n${lines.join('\n')}\n${total} passed, ${failed.length} failed`);
  return failed.length === 0 ? 0 : 1;
});
