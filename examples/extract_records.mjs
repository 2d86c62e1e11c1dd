// Free text to records: every note becomes an object of one schema, whatever the model would rather have said. The form is
// certain; whether the content is right is for a person to check.
//   node examples/extract_records.mjs [model folder]
import { Model } from 'sigmoe';

const notes = [
  'Female, 54. Dry cough for three weeks, worse at night. No fever. Allergic to penicillin. Takes ramipril 5 mg once a day.',
  '男，68 岁，头晕两天，血压 158/96，既往高血压病史，服用氨氯地平 5 mg 每日一次。',
];

const schema = {
  type: 'object',
  properties: {
    sex: { enum: ['female', 'male', 'unknown'] },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    complaint: { type: 'string', maxLength: 60 },
    durationDays: { type: 'integer', minimum: 0, maximum: 3650 },
    allergies: { type: 'array', items: { type: 'string', maxLength: 20 }, maxItems: 3 },
    drugs: {
      type: 'array',
      items: {
        type: 'object',
        properties: { name: { type: 'string', maxLength: 20 }, milligrams: { type: 'number', minimum: 0, maximum: 5000 } },
        required: ['name', 'milligrams'],
      },
      maxItems: 3,
    },
  },
  required: ['sex', 'age', 'complaint', 'durationDays', 'allergies', 'drugs'],
};

const model = await Model.load(process.argv[2] ?? 'models/nano');
const results = await model.generateBatch(
  notes.map((note) => ({
    messages: [
      { role: 'system', content: 'Extract what the note says. Invent nothing: what it does not say stays empty.' },
      { role: 'user', content: note },
    ],
    structured: { json: schema },
    maxTokens: 400,
    temperature: 0,
  })),
);
await model.dispose();

for (const { text, finishReason } of results) {
  // Cut off by maxTokens it would be the beginning of a record, not a record.
  if (finishReason === 'stop') console.log(JSON.stringify(JSON.parse(text)));
  else console.log(JSON.stringify({ error: `no whole record: ${finishReason}` }));
}
