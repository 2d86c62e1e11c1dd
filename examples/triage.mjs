// A triage in several turns: the model asks, the patient answers, and at the end stands a decision of a fixed form. What the
// conversation had so far is not computed again: the prefix cache holds it. For demonstration, never for real patients.
//   node examples/triage.mjs [model folder]        answers from the keyboard, or a line each from a file
import { createInterface } from 'node:readline';
import { Model } from 'sigmoe';

const QUESTIONS = 3;
const model = await Model.load(process.argv[2] ?? 'models/nano');
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const messages = [
  { role: 'system', content: 'You are a triage nurse. Ask one short question at a time. Give no diagnosis.' },
];

console.log('What brings you here?');
for (let turn = 0; ; turn++) {
  const { value: answer, done } = await lines.next();
  if (done) break;
  messages.push({ role: 'user', content: answer });
  if (turn === QUESTIONS) break;
  const generation = model.generate({ messages, maxTokens: 40, temperature: 0.6, topP: 0.95, seed: turn, stop: ['?', '？'] });
  for await (const { text } of generation) process.stdout.write(text);
  console.log('?');
  messages.push({ role: 'assistant', content: (await generation.result).text });
}

if (messages.length > 1) {
  messages.push({ role: 'user', content: 'How urgent is this, and where should I go?' });
  const { text, usage } = await model.generate({
    messages,
    structured: {
      json: {
        type: 'object',
        properties: {
          urgency: { enum: ['emergency', 'today', 'this week', 'self-care'] },
          place: { enum: ['emergency department', 'general practitioner', 'pharmacy', 'home'] },
          reason: { type: 'string', maxLength: 80 },
        },
        required: ['urgency', 'place', 'reason'],
      },
    },
    maxTokens: 200,
    temperature: 0,
  }).result;
  console.log(JSON.parse(text));
  console.log(`${usage.cachedTokens} of ${usage.promptTokens} prompt tokens came from the prefix cache`);
}
await model.dispose();
