// Worker threads that are terminated at random moments of one kind of work, while the main thread's own model goes on.
// Arguments: a model's folder, what the workers do, how many of them.
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { Model, pause } from './measure.mjs';

const [, , path, work, count] = process.argv;

/** What a worker does until it is terminated; it says when it has begun. */
const works = {
  load: `for (;;) {
    parentPort.postMessage('begun');
    await (await Model.load(path, { onProgress: () => {} })).dispose();
  }`,
  generate: `for (;;) {
    for await (const _ of model.generate({ prompt: [1, 2, 3], ignoreEos: true })) parentPort.postMessage('begun');
  }`,
  submit: `parentPort.postMessage('begun');
  for (;;) {
    const controllers = Array.from({ length: 50 }, () => new AbortController());
    const ends = controllers.map(({ signal }) => model.generate({ prompt: [1, 2, 3], signal }).result.catch(() => {}));
    for (const controller of controllers) controller.abort();
    await Promise.all(ends);
  }`,
  inspect: `parentPort.postMessage('begun');
  for (;;) {
    for (let i = 0; i < 100; i++) model.stats();
    await inspect(path);
  }`,
};
const library = import.meta.resolve('../../dist/index.js');
const source = `
  const { parentPort, workerData: path } = require('node:worker_threads');
  import(${JSON.stringify(library)}).then(async ({ Model, inspect }) => {
    const model = ${work === 'load' ? 'undefined' : 'await Model.load(path)'};
    ${works[work]}
  });`;

const model = await Model.load(path);
let [terminated, tokens] = [0, 0];
for (let i = 0; i < Number(count); i++) {
  const worker = new Worker(source, { eval: true, workerData: path });
  worker.on('error', (error) => {
    console.error(error);
    process.exit(1);
  });
  await once(worker, 'message');
  await pause(Math.random() * 10);
  const here = model.generate({ prompt: [1, 2, 3], maxTokens: 20, ignoreEos: true });
  if ((await worker.terminate()) === 1) terminated++; // anything else: it had ended by itself
  tokens += (await here.result).usage.completionTokens;
}
await model.dispose();
console.log(JSON.stringify({ terminated, tokens }));
