import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    // A process per file: an addon that crashes takes one file with it, and no two files share a thread pool.
    pool: 'forks',
    maxWorkers: 2,
    include: ['test/**/*.test.ts'],
    // Ten times what the slowest needs on an idle machine: a busy one is no failure.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 30_000 } }, // of which the default is one second
    watch: false,
    coverage: { include: ['lib/**/*.ts'], reportsDirectory: 'build/coverage' },
  },
});
