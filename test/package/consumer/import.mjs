// Loaded by import: prints the greedy answer.
import { Model } from 'sigmoe';

const model = await Model.load(process.argv[2]);
const messages = [{ role: 'user', content: 'What is asthma?' }];
const { text } = await model.generate({ messages, temperature: 0, maxTokens: 12 }).result;
await model.dispose();
console.log(JSON.stringify({ text, file: import.meta.resolve('sigmoe') }));
