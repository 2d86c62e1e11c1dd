// Text from the bundled model, as it comes; then an answer that must follow a JSON schema.
//   node examples/generate.mjs [model folder]
import { Model } from 'sigmoe';

const model = await Model.load(process.argv[2] ?? 'models/nano');

const generation = model.generate({
  messages: [{ role: 'user', content: 'What are the symptoms of asthma?' }],
  maxTokens: 60,
  temperature: 0.6,
  seed: 7,
});
for await (const { text } of generation) process.stdout.write(text);
const { usage, finishReason } = await generation.result;
console.log(`\n[${usage.completionTokens} tokens, ended by ${finishReason}]\n`);

const { text } = await model.generate({
  messages: [{ role: 'user', content: 'Describe a patient with asthma.' }],
  structured: {
    json: {
      type: 'object',
      properties: {
        age: { type: 'integer', minimum: 0, maximum: 120 },
        temperature: { type: 'number', minimum: 35, maximum: 42 },
        severity: { enum: ['mild', 'moderate', 'severe'] },
        smoker: { type: 'boolean' },
      },
      required: ['age', 'severity', 'smoker'],
    },
  },
  maxTokens: 100,
  seed: 7,
}).result;
console.log(JSON.parse(text));

await model.dispose();
