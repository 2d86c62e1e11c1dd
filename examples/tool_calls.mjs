// A model that calls a function of this program and answers with what it returned, through the client that has the shape
// of the `openai` package: with that package and a server the rest stays as it is.
//   node examples/tool_calls.mjs [model folder]
import { createClient, Model } from 'sigmoe';

const model = await Model.load(process.argv[2] ?? 'models/nano');
const client = createClient(model);

const doses = { ibuprofen: '1200 mg a day', paracetamol: '4000 mg a day' };
const tools = [
  {
    type: 'function',
    function: {
      name: 'largest_dose',
      description: 'The largest dose of a drug for adults, without a prescription',
      parameters: { type: 'object', properties: { drug: { enum: Object.keys(doses) } }, required: ['drug'] },
    },
  },
];
const messages = [{ role: 'user', content: 'How much ibuprofen may I take?' }];

// The bundled model is too small to call by itself: `required` makes it. A real one decides with `auto`.
const asked = await client.chat.completions.create({ messages, tools, tool_choice: 'required', max_tokens: 200, seed: 7 });
const { message } = asked.choices[0];
messages.push(message);
for (const { id, function: called } of message.tool_calls) {
  const { drug } = JSON.parse(called.arguments);
  console.log(`${called.name}(${drug}) = ${doses[drug]}`);
  messages.push({ role: 'tool', tool_call_id: id, content: doses[drug] });
}

const stream = await client.chat.completions.create({ messages, tools, tool_choice: 'none', max_tokens: 60, seed: 7, stream: true });
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? '');
console.log();

await model.dispose();
