// Loads a model, uses it and disposes it, again and again.
import { Model, memory } from './measure.mjs';

async function cycle() {
  const model = await Model.load(process.argv[2]);
  await model.generate({ prompt: [1, 2, 3], maxTokens: 2 }).result;
  await model.dispose();
}

for (let i = 0; i < 5; i++) await cycle();
const before = await memory();
for (let i = 0; i < 20; i++) await cycle();
console.log(JSON.stringify({ before, after: await memory() }));
