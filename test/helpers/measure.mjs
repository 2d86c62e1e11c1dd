// What the scripts beside this one share. They run on the built library, in a process without a test runner in it.
export { Model } from '../../dist/index.js';

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Memory of this process once garbage is collected. */
export async function memory() {
  for (let i = 0; i < 4; i++) {
    globalThis.gc();
    await pause(20);
  }
  const { rss, heapUsed } = process.memoryUsage();
  return { rssMiB: rss / 2 ** 20, heapMiB: heapUsed / 2 ** 20 };
}
