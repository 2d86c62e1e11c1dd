// Who failed, read from real reports: of vitest by running it, of the C++ programs from what doctest 2.4.9 prints.
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';

interface Outcome {
  passed: number;
  failures: string[];
}
interface Readers {
  readVitest(outcome: string, status: number): Outcome;
  readDoctest(output: string, status: number): Outcome;
  readMutants(output: string, status: number): Outcome;
}

const root = join(import.meta.dirname, '../..');
const { readVitest, readDoctest, readMutants }: Readers = await import(pathToFileURL(join(root, 'scripts/failures.mjs')).href);

const line = '='.repeat(79);
const passing = `${line}
pages.cpp:6:
TEST CASE:  pages: says why it did little

pages.cpp:6: MESSAGE: no GPU here: ERROR: is only a word
pages.cpp:7: WARNING: WARN( 1 == 2 ) is NOT correct!

`;
const failing = `${line}
pages.cpp:7:
TEST CASE:  pages: two subcases fail
  one

pages.cpp:8: ERROR: CHECK( 1 + 1 == 3 ) is NOT correct!
  values: CHECK( 2 == 3 )

pages.cpp:8: ERROR: CHECK( 2 == 3 ) is NOT correct!
  values: CHECK( 2 == 3 )

${line}
pages.cpp:7:
TEST CASE:  pages: two subcases fail
  two

pages.cpp:9: FATAL ERROR: REQUIRE( false ) is NOT correct!
  values: REQUIRE( false )

${line}
pages.cpp:11:
TEST CASE:  pages: throws

pages.cpp:11: ERROR: test case THREW exception: no page left

`;
const named = [
  'pages: two subcases fail: pages.cpp:8: ERROR: CHECK( 1 + 1 == 3 ) is NOT correct!',
  'pages: throws: pages.cpp:11: ERROR: test case THREW exception: no page left',
];
const summary = (passed: number, failed: number) => `${line}
[doctest] test cases: ${passed + failed} | ${passed} passed | ${failed} failed | 0 skipped
`;

let folder: string;
beforeAll(() => {
  mkdirSync(join(root, 'build'), { recursive: true });
  folder = mkdtempSync(join(root, 'build/failures-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function vitest(files: Record<string, string>): Outcome {
  const place = mkdtempSync(join(folder, 'run-'));
  mkdirSync(join(place, 'test')); // where this checkout's own settings, which vitest finds above it, look for tests
  for (const [name, text] of Object.entries(files)) writeFileSync(join(place, 'test', name), text);
  const outcome = join(place, 'outcome.json');
  const program = join(root, 'node_modules/vitest/vitest.mjs');
  const args = [program, 'run', '--root', place, `--reporter=${join(root, 'scripts/vitest_outcome.mjs')}`];
  const env = { ...process.env, SIGMOE_VITEST_OUTCOME: outcome };
  const { status } = spawnSync(process.execPath, args, { env, stdio: 'ignore' });
  return readVitest(outcome, status ?? -1);
}

test('vitest: a test, an import and a hook that fail are named', () => {
  const { passed, failures } = vitest({
    'sums.test.ts': `import { describe, expect, test } from 'vitest';
      test('fine', () => {});
      describe('sums', () => test('one and one', () => expect(1 + 1, 'a sum').toBe(3)));`,
    'broken.test.ts': "import './nothing.js';",
    'hook.test.ts': `import { beforeAll, test } from 'vitest';
      beforeAll(() => { throw new Error('no port'); });
      test('never runs', () => {});`,
  });
  expect(passed).toBe(1);
  expect(failures.toSorted()).toEqual([
    expect.stringMatching(/^test\/broken\.test\.ts: .*nothing\.js/),
    expect.stringMatching(/^test\/hook\.test\.ts: .*no port/),
    'test/sums.test.ts > sums > one and one: AssertionError: a sum: expected 2 to be 3 // Object.is equality',
  ]);
});

test('vitest: a worker that dies is named, with the tests it did not end', () => {
  const dies = `import { test } from 'vitest';
    test('fine', () => {});
    test('dies', async () => { await new Promise((r) => setTimeout(r, 300)); process.kill(process.pid, 'SIGKILL'); });
    test('never runs', () => {});`;
  expect(vitest({ 'dies.test.ts': dies })).toEqual({
    passed: 1,
    skipped: 0,
    failures: [
      expect.stringMatching(/^outside any test: .*Worker forks emitted error.*Worker exited unexpectedly/),
      'test/dies.test.ts > dies: did not end',
      'test/dies.test.ts > never runs: did not end',
    ],
  });
});

test('vitest: an error outside any test is a failure, and so is no report', () => {
  const stray = `import { test } from 'vitest';
    test('fine', () => { setTimeout(() => { throw new Error('late'); }, 0); return new Promise((r) => setTimeout(r, 50)); });`;
  expect(vitest({ 'stray.test.ts': stray })).toMatchObject({ passed: 1, failures: ['outside any test: late'] });
  expect(vitest({ 'fine.test.ts': "import { test } from 'vitest'; test('fine', () => {});" })).toMatchObject({
    passed: 1,
    failures: [],
  });
  expect(readVitest(join(folder, 'none.json'), 124).failures).toEqual(['vitest ended with status 124 and no report']);
});

test('doctest: each failed case is named once, with its first error; one that only talks is not', () => {
  expect(readDoctest(passing + summary(9, 0), 0)).toEqual({ passed: 9, failures: [] });
  expect(readDoctest(passing + failing + summary(9, 2), 1)).toEqual({ passed: 9, failures: named });
});

test('doctest: no failure goes uncounted', () => {
  expect(readDoctest(failing + summary(9, 3), 1).failures).toEqual([...named, '1 more that the output does not name']);
  const early = 'the C++ tests ended with status 139 before their summary';
  expect(readDoctest(passing + failing, 139).failures).toEqual([...named, early]);
  const late = 'the C++ tests ended with status 1, though no case failed';
  expect(readDoctest(passing + summary(9, 0), 1).failures).toEqual([late]);
});

test('mutants: those that no test noticed are named', () => {
  const output = `caught   route, route.cpp: a barrier less\n  CHECK( a == b ) is NOT correct!
SURVIVED norm, norm.cpp: eps forgotten\n  no test failed\nmutants: 1 of 2 caught in 9.5 s\n`;
  expect(readMutants(output, 1)).toEqual({ passed: 1, failures: ['SURVIVED norm, norm.cpp: eps forgotten'] });
  const early = 'the run of the mutants ended with status 124 before its summary';
  expect(readMutants('caught   route, route.cpp: a barrier less\n', 124).failures).toEqual([early]);
  expect(readMutants('mutants: 0 of 0 caught in 0.0 s\n', 1).failures).toEqual(['the run of the mutants ended with status 1']);
});
