// A thousand generations of random lengths, of which a third or so are aborted by their signal or left by their reader.
import { Model, memory, pause } from './measure.mjs';

const model = await Model.load(process.argv[2], { maxNumSeqs: 8 });

let state = 1;
/** Numbers in [0, 1) that are the same in every run. */
function random() {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
}

async function generateOne() {
  const controller = new AbortController();
  const prompt = Array.from({ length: 1 + Math.floor(random() * 300) }, () => Math.floor(random() * 6000));
  const maxTokens = 1 + Math.floor(random() * 24);
  const generation = model.generate({ prompt, maxTokens, ignoreEos: true, signal: controller.signal });
  const way = random();
  if (way < 0.3) setTimeout(() => controller.abort(), random() * 20);
  else if (way < 0.5) for await (const _ of generation) if (random() < 0.3) break;
  return generation.result.then(
    (result) => result.finishReason,
    (error) => error.name,
  );
}

async function generateMany(count) {
  const ends = {};
  for (let i = 0; i < count; i += 10) {
    for (const end of await Promise.all(Array.from({ length: 10 }, generateOne))) ends[end] = (ends[end] ?? 0) + 1;
  }
  while (model.stats().running + model.stats().waiting > 0) await pause(5);
  return ends;
}

// The first round fills what is kept for good: compiled code, the heaps of V8 and of the allocator.
await generateMany(500);
const before = { stats: model.stats(), ...(await memory()) };
const ends = await generateMany(1000);
const after = { stats: model.stats(), ...(await memory()) };
await model.dispose();
console.log(JSON.stringify({ before, after, ends }));
