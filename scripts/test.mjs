// npm test: types, TypeScript tests, C++ tests, the Ascend kernels on their CPU twin, and the loader under a hundred thousand
// mutated files with sanitizers on.
// Its last line is "N passed, N failed". One stage alone: node scripts/test.mjs types | unit | native | ascend | fuzz

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildNative, prepare } from './prepare.mjs';
import { findBuildTools, readJson, root, run, runMain, runStep, ScriptError, say } from './tools.mjs';

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

/** Each stage answers { passed, failed, note } or throws; a stage that throws counts as one failure. */
const stages = {
  types: async () => {
    // The tests are type-checked too: a type test that no longer compiles fails here.
    const config = existsSync(join(root, 'test/tsconfig.json')) ? 'test/tsconfig.json' : 'tsconfig.json';
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    await runStep(`checking types (${config})`, process.execPath, [tsc, '--noEmit', '-p', config], {
      log: join(root, 'build/types.log'),
    });
    return { passed: 0, failed: 0, note: 'clean' };
  },

  unit: async () => {
    const report = join(root, 'build/vitest.json');
    rmSync(report, { force: true });
    const { status } = await run(
      process.execPath,
      [join(root, 'node_modules/vitest/vitest.mjs'), 'run', '--reporter=default', '--reporter=json', `--outputFile=${report}`],
      { limitSeconds: UNIT_LIMIT_SECONDS },
    );
    if (!existsSync(report)) throw new ScriptError(`vitest ended with status ${status} and no report`);
    const { numPassedTests: passed, numFailedTests, numPendingTests: skipped, testResults } = readJson(report);
    // A file that could not be imported holds no tests, and an error outside any test fails none: both are failures.
    const broken = testResults.filter((file) => file.status === 'failed' && file.assertionResults.length === 0).length;
    const failed = numFailedTests + broken;
    const outside = status !== 0 && failed === 0 ? 1 : 0;
    return { passed, failed: failed + outside, note: skipped > 0 ? `${skipped} skipped` : '' };
  },

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
    if (engine.passed + engine.failed !== ASCEND_ENGINE_TESTS.length)
      throw new ScriptError(`${engine.passed + engine.failed} of ${ASCEND_ENGINE_TESTS.length} selected engine tests ran`);
    parts.push(engine);
    const vitest = join(root, 'node_modules/vitest/vitest.mjs');
    const library = join(root, 'build-test/test/native/libsigmoe_ascend_twin.so');
    const { status } = await run(process.execPath, [vitest, 'run', 'test/engine/ascend_twin.test.ts'], {
      ...options,
      env: { SIGMOE_ASCEND_TWIN_LIBRARY: library },
    });
    parts.push({ passed: status === 0 ? 1 : 0, failed: status === 0 ? 0 : 1 });
    const sum = (of) => parts.reduce((total, part) => total + part[of], 0);
    return { passed: sum('passed'), failed: sum('failed'), note: '' };
  },

  fuzz: async () => {
    if (!hasSanitizers()) {
      say('NOT RUN: the loader fuzz needs the address and undefined-behaviour sanitizers (libasan, libubsan) of this compiler');
      return { passed: 0, failed: 0, note: 'NOT RUN, no sanitizer runtime' };
    }
    await buildNative('compiling the loader fuzzer with sanitizers', 'build-asan', 'sigmoe_fuzz_loader', [
      '-DSIGMOE_TESTS=ON',
      '-DSIGMOE_SANITIZE=address,undefined',
      '-DCMAKE_BUILD_TYPE=RelWithDebInfo',
    ]);
    const program = join(root, 'build-asan/test/native/sigmoe_fuzz_loader');
    const { status } = await run(program, [String(FUZZ_ITERATIONS)], { limitSeconds: FUZZ_LIMIT_SECONDS });
    if (status !== 0) throw new ScriptError(`the loader fuzz ended with status ${status}`);
    return { passed: 1, failed: 0, note: `${FUZZ_ITERATIONS} files` };
  },
};

// Runs one of the C++ test programs and counts its cases.
async function runNative(name, args, { limitSeconds, env = {} }) {
  const program = join(root, 'build-test/test/native', name);
  const { status, output } = await run(program, args, { limitSeconds, capture: true, env });
  // [doctest] test cases: 12 | 12 passed | 0 failed | 0 skipped
  const summary = /test cases:\s*\d+\s*\|\s*(\d+) passed\s*\|\s*(\d+) failed/.exec(output);
  if (summary === null) throw new ScriptError(`the C++ tests ended with status ${status} before their summary`);
  const [passed, failed] = [Number(summary[1]), Number(summary[2])];
  return { passed, failed: status !== 0 && failed === 0 ? 1 : failed, note: '' };
}

// The tests of the Ascend kernels against kernels with a defect in each: one that goes unnoticed is a failure.
async function runMutants(options) {
  const { status, output } = await run(join(root, 'build-test/test/native/ascend/sigmoe_ascend_mutants'), [], {
    ...options,
    capture: true,
  });
  // mutants: 35 of 35 caught in 9.5 s
  const summary = /mutants: (\d+) of (\d+) caught/.exec(output);
  if (summary === null) throw new ScriptError(`the run of the mutants ended with status ${status} before its summary`);
  return { passed: Number(summary[1]), failed: Number(summary[2]) - Number(summary[1]) };
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
  const totals = { passed: 0, failed: 0 };
  const lines = [];
  const count = (name, { passed, failed, note }) => {
    totals.passed += passed;
    totals.failed += failed;
    lines.push(`  ${name.padEnd(8)}${passed} passed, ${failed} failed${note ? ` (${note})` : ''}`);
  };
  const attempt = async (name, body) => {
    try {
      count(name, await body());
    } catch (error) {
      say(error instanceof ScriptError ? error.message : error.stack);
      count(name, { passed: 0, failed: 1, note: 'did not run to its end' });
    }
  };
  // Without a build the stages that do not need it still run, so that one report names everything that is wrong.
  await attempt('build', async () => {
    await prepare();
    return { passed: 0, failed: 0, note: 'up to date' };
  });
  for (const name of asked.length > 0 ? asked : Object.keys(stages)) await attempt(name, stages[name]);
  console.log(`\n${lines.join('\n')}\n${totals.passed} passed, ${totals.failed} failed`);
  return totals.failed === 0 ? 0 : 1;
});
