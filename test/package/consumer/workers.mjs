// Three worker threads load the addon and a model at once, the main thread neither: prints their answers.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

if (isMainThread) {
  const answers = await Promise.all(
    [1, 2, 3].map(
      () =>
        new Promise((resolve, reject) => {
          new Worker(new URL(import.meta.url), { workerData: process.argv[2] }).on('message', resolve).on('error', reject);
        }),
    ),
  );
  console.log(JSON.stringify(answers));
} else {
  const { Model } = await import('sigmoe');
  const model = await Model.load(workerData);
  const messages = [{ role: 'user', content: 'What is asthma?' }];
  const { text } = await model.generate({ messages, temperature: 0, maxTokens: 12 }).result;
  await model.dispose();
  parentPort.postMessage(text);
}
