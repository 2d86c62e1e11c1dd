// A reporter for vitest that leaves behind what scripts/failures.mjs reads: { passed, skipped, failures }, a line for each failure,
// in the file that SIGMOE_VITEST_OUTCOME names. Vitest's own JSON leaves out errors outside of tests and tests that did not end,
// which are all there is to see of a worker that died.
import { writeFileSync } from 'node:fs';
import { stripVTControlCharacters } from 'node:util';

/** The first line of an error, with those of what caused it: a worker's end is the cause of "Worker emitted error". */
function said({ name, message, cause }) {
  const first = stripVTControlCharacters(message ?? '')
    .trim()
    .split('\n', 1)[0];
  const line = name && name !== 'Error' && !first.startsWith(name) ? `${name}: ${first}` : first;
  return cause?.message ? `${line} (${said(cause)})` : line;
}

export default class VitestOutcome {
  onTestRunEnd(modules, strayErrors) {
    const count = { passed: 0, skipped: 0, failed: 0, pending: 0 };
    const failures = strayErrors.map((error) => `outside any test: ${said(error)}`);
    for (const module of modules) {
      // Files that could not be imported, and hooks: they fail without a failed test.
      for (const part of [module, ...module.children.allSuites()]) {
        for (const error of part.errors())
          failures.push(`${[module.relativeModuleId, part.fullName].filter(Boolean).join(' > ')}: ${said(error)}`);
      }
      for (const test of module.children.allTests()) {
        const { state, errors } = test.result();
        count[state]++;
        const name = `${module.relativeModuleId} > ${test.fullName}`;
        if (state === 'failed') failures.push(`${name}: ${said(errors[0])}`);
        if (state === 'pending') failures.push(`${name}: did not end`);
      }
    }
    const { passed, skipped } = count;
    writeFileSync(process.env.SIGMOE_VITEST_OUTCOME, JSON.stringify({ passed, skipped, failures }));
  }
}
