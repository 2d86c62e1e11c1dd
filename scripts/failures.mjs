// What failed, by name: read from what each test program leaves behind. A log that is cut keeps its end, so npm test repeats
// there who failed. Every function here answers { passed, failures }, a line for each failure.
import { existsSync, readFileSync } from 'node:fs';

/** What scripts/vitest_outcome.mjs left of a run, which ended with `status`. */
export function readVitest(outcome, status) {
  if (!existsSync(outcome)) return { passed: 0, skipped: 0, failures: [`vitest ended with status ${status} and no report`] };
  const { passed, skipped, failures } = JSON.parse(readFileSync(outcome, 'utf8'));
  if (status !== 0 && failures.length === 0) failures.push(`vitest ended with status ${status}, though nothing failed`);
  return { passed, skipped, failures };
}

/** The output of a doctest program: case: its first error. */
export function readDoctest(output, status) {
  const cases = new Map();
  // A block per case, or per subcase, that said anything; warnings and messages of cases that pass are among them.
  for (const block of output.split(/^={70,}$/m)) {
    const name = /^TEST CASE: {2}(.*)$/m.exec(block)?.[1];
    const error =
      /^[^:\n]+:\d+: (?:FATAL )?ERROR: .*$|^(?:Test case exceeded time limit|Should have failed|Didn't fail).*$/m.exec(block);
    if (name !== undefined && error !== null && !cases.has(name)) cases.set(name, `${name}: ${error[0]}`);
  }
  const failures = [...cases.values()];
  // [doctest] test cases: 12 | 12 passed | 0 failed | 0 skipped
  const summary = /test cases:\s*\d+\s*\|\s*(\d+) passed\s*\|\s*(\d+) failed/.exec(output);
  if (summary === null) {
    return { passed: 0, failures: [...failures, `the C++ tests ended with status ${status} before their summary`] };
  }
  const unnamed = Number(summary[2]) - failures.length;
  if (unnamed > 0) failures.push(`${unnamed} more that the output does not name`);
  if (status !== 0 && failures.length === 0) failures.push(`the C++ tests ended with status ${status}, though no case failed`);
  return { passed: Number(summary[1]), failures };
}

/** The output of the run of the mutants: a mutant that no test notices is a failure. */
export function readMutants(output, status) {
  const failures = [...output.matchAll(/^SURVIVED .*$/gm)].map(([line]) => line);
  // mutants: 35 of 35 caught in 9.5 s
  const summary = /^mutants: (\d+) of (\d+) caught/m.exec(output);
  if (summary === null) {
    return { passed: 0, failures: [...failures, `the run of the mutants ended with status ${status} before its summary`] };
  }
  if (status !== 0 && failures.length === 0) failures.push(`the run of the mutants ended with status ${status}`);
  return { passed: Number(summary[1]), failures };
}
