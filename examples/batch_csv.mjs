// Answers a file of cases at once: a CSV with the columns id, age and question in, a CSV with id, answer, tokens and finish
// reason out. The engine runs as many of them together as fit.
//   node examples/batch_csv.mjs [cases.csv] [model folder] > answers.csv
import { readFileSync } from 'node:fs';
import { Model } from 'sigmoe';

const cases = parseCsv(readFileSync(process.argv[2] ?? 'examples/cases.csv', 'utf8'));
const model = await Model.load(process.argv[3] ?? 'models/nano');

const requests = cases.map(({ age, question }) => ({
  messages: [{ role: 'user', content: `A patient, ${age} years old, asks: ${question}` }],
  maxTokens: 80,
  temperature: 0,
}));
const results = await model.generateBatch(requests, {
  onProgress: ({ done, total }) => process.stderr.write(`\r${done} of ${total} cases${done === total ? '\n' : ''}`),
});
await model.dispose();

console.log('id,answer,tokens,finish');
results.forEach(({ text, usage, finishReason }, index) => {
  console.log([cases[index].id, text, usage.completionTokens, finishReason].map(cell).join(','));
});

/** A cell is quoted where it holds a comma, a quote or a line break; a quote in it is doubled. */
function cell(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Rows as objects, named by the first line. */
function parseCsv(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.trimEnd().matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/g)) {
    rows.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === '') break;
    if (end !== ',') rows.push([]);
  }
  const [names, ...cases] = rows;
  return cases.map((cells) => Object.fromEntries(names.map((name, index) => [name, cells[index] ?? ''])));
}
