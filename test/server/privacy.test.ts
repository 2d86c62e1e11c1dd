/**
 * What is asked and answered appears nowhere but in the answer: a marker is planted in prompts and made to appear in
 * answers, then looked for in everything the server writes.
 */
import { context, trace } from '@opentelemetry/api';
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openTracing } from '../../lib/server/tracing.js';
import { MODEL, type Serving, serving } from './serving.js';

const MARKER = 'Quittenmarmelade';
const exporter = new InMemorySpanExporter();
const written: string[] = [];
let server: Serving;

beforeAll(async () => {
  trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }));
  for (const stream of [process.stdout, process.stderr]) {
    const write = stream.write.bind(stream);
    stream.write = ((chunk: string | Uint8Array, ...rest: []) => {
      written.push(String(chunk));
      return write(chunk, ...rest);
    }) as typeof stream.write;
  }
  const tracing = await openTracing();
  expect(tracing).toBeDefined();
  server = await serving({ tracing, trustRequestChatTemplate: false });
});

afterAll(() => {
  trace.disable();
  context.disable();
});

const messages = [
  { role: 'system', content: `You know ${MARKER}.` },
  { role: 'user', content: `Tell me about ${MARKER}.` },
];
/** Makes the answer say it. */
const said = { guided_choice: [`${MARKER} is sweet`], max_tokens: 60 };

const asked: [string, Record<string, unknown>, number][] = [
  ['/v1/chat/completions', { messages, ...said }, 200],
  ['/v1/chat/completions', { messages, ...said, stream: true }, 200],
  ['/v1/chat/completions', { messages, max_tokens: 8, logprobs: true, stop: [MARKER], bad_words: [MARKER], user: MARKER }, 200],
  ['/v1/completions', { prompt: MARKER, echo: true, logprobs: 2, ...said }, 200],
  [
    '/v1/responses',
    { input: MARKER, instructions: MARKER, stream: true, max_output_tokens: 8, metadata: { note: MARKER } },
    200,
  ],
  ['/tokenize', { prompt: MARKER, return_token_strs: true }, 200],
  ['/v1/chat/completions', { messages: [{ role: MARKER, content: 'x' }] }, 400],
  ['/v1/chat/completions', { messages: [{ role: 'user', content: { text: MARKER } }] }, 400],
  ['/v1/chat/completions', { messages: [{ role: 'user', content: [{ type: MARKER }] }] }, 400],
  ['/v1/chat/completions', { messages, temperature: MARKER }, 400],
  ['/v1/chat/completions', { messages, stop: [''] }, 400],
  ['/v1/chat/completions', { messages, tool_choice: MARKER }, 400],
  ['/v1/chat/completions', { messages, model: MARKER }, 404],
  ['/v1/chat/completions', { messages: [{ role: 'user', content: `${MARKER} `.repeat(2000) }] }, 400],
  ['/v1/chat/completions', { messages, continue_final_message: true }, 400],
  ['/v1/completions', { prompt: [MARKER, 3] }, 400],
  [`/v1/models/${MARKER}`, {}, 405],
  [`/${MARKER}?q=${MARKER}`, {}, 404],
];

test('in no log, metric, trace or error', async () => {
  let inAnswers = 0;
  for (const [path, body, status] of asked) {
    const response = await fetch(server.url + path, { method: 'POST', body: JSON.stringify(body) });
    const text = await response.text();
    expect(`${path} ${response.status}`).toBe(`${path} ${status}`);
    if (status !== 200) expect(text).not.toContain(MARKER);
    else if (text.includes(MARKER)) inAnswers += 1;
  }
  expect(inAnswers).toBeGreaterThanOrEqual(3); // the marker did pass through
  const cut = await fetch(`${server.url}/v1/completions`, { method: 'POST', body: `{"prompt": "${MARKER}` });
  expect(await cut.text()).not.toContain(MARKER);
  const named = await fetch(`${server.url}/v1/models/${MARKER}`);
  expect(await named.text()).not.toContain(MARKER);

  await expect.poll(() => server.logged().split('\n').length).toBeGreaterThan(asked.length);
  expect(server.logged()).not.toContain(MARKER);
  expect(await (await fetch(`${server.url}/metrics`)).text()).not.toContain(MARKER);
  const spans = exporter.getFinishedSpans();
  expect(spans.length).toBeGreaterThanOrEqual(asked.length);
  expect(spans.some(({ attributes }) => Number(attributes['gen_ai.usage.output_tokens']) > 0)).toBe(true);
  const facts = spans.map(({ name, attributes, events, status }) => JSON.stringify({ name, attributes, events, status }));
  expect(facts.join('\n')).not.toContain(MARKER);
  expect(written.join('')).not.toContain(MARKER);
});

test('in the log when the operator asks for it', async () => {
  const open = await serving({ logContent: true });
  const body = JSON.stringify({ model: MODEL, messages, ...said, guided_choice: [`${MARKER} is sour`] });
  await (await fetch(`${open.url}/v1/chat/completions`, { method: 'POST', body })).text();
  await expect.poll(() => open.logged()).toContain(`"answer":"${MARKER} is sour"`);
  expect(open.logged()).toContain(`Tell me about ${MARKER}.`);
});
