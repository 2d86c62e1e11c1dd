/**
 * Bodies that nobody meant: whatever comes, the answer is a well-formed error of the API or a valid answer, and the server
 * lives. SIGMOE_FUZZ_BODIES says how many bodies; 50,000 take some minutes.
 */
import fc from 'fast-check';
import { beforeAll, expect, test } from 'vitest';
import { ChatBody, CompletionBody, DetokenizeBody, ResponseBody, TokenizeBody } from '../../lib/openai/schema.js';
import { MODEL, type Serving, serving } from './serving.js';

const BODIES = Number(process.env.SIGMOE_FUZZ_BODIES ?? 1500);

let server: Serving;
beforeAll(async () => {
  server = await serving({ maxBodyBytes: 64 << 10 }, { maxModelLen: 256 });
});

const messages = [{ role: 'user', content: 'Hi' }];
const routes: { url: string; schema: { properties: object }; sound: Record<string, unknown> }[] = [
  { url: '/v1/chat/completions', schema: ChatBody, sound: { messages, max_tokens: 2 } },
  { url: '/v1/completions', schema: CompletionBody, sound: { prompt: 'Hi', max_tokens: 2 } },
  { url: '/v1/responses', schema: ResponseBody, sound: { input: 'Hi', max_output_tokens: 2 } },
  { url: '/tokenize', schema: TokenizeBody, sound: { prompt: 'Hi' } },
  { url: '/detokenize', schema: DetokenizeBody, sound: { tokens: [1, 2] } },
];

/** Values that are likely to be wrong in a way that matters. */
const odd = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    true,
    false,
    0,
    1,
    2,
    -1,
    0.5,
    1e9,
    2 ** 31,
    2 ** 53,
    -(2 ** 63),
    1e308,
    '',
    'auto',
    'Hi',
    '\ud800',
    '\u0000',
  ),
  fc.constantFrom<unknown>(
    [],
    {},
    [[]],
    [null],
    { type: 'text' },
    { type: 'function' },
    { json: {} },
    { '0': 1 },
    { __proto__: 1 },
  ),
  fc.integer(),
  fc.double(),
  fc.string({ unit: 'binary', maxLength: 12 }),
  fc.array(fc.oneof(fc.integer({ min: -2, max: 7000 }), fc.string({ maxLength: 4 })), { maxLength: 4 }),
  fc.jsonValue({ maxDepth: 3 }),
);

/** Objects that look like what a field takes, with parts replaced. */
const nearly = fc.oneof(
  fc.record(
    {
      role: fc.oneof(fc.constantFrom('user', 'assistant', 'tool', 'system'), odd),
      content: fc.oneof(fc.string({ maxLength: 8 }), odd),
    },
    { requiredKeys: [] },
  ),
  fc.record(
    {
      type: fc.constantFrom('text', 'json_object', 'json_schema', 'function', 'message'),
      text: odd,
      json_schema: odd,
      function: odd,
      name: odd,
    },
    { requiredKeys: ['type'] },
  ),
  fc.record(
    {
      json: odd,
      regex: fc.oneof(fc.string({ maxLength: 8 }), odd),
      choice: fc.array(fc.string({ maxLength: 4 }), { maxLength: 3 }),
      grammar: odd,
    },
    { requiredKeys: [] },
  ),
);

const field = fc.oneof(odd, nearly, fc.array(nearly, { maxLength: 3 }));

function bodyFor({ schema, sound }: (typeof routes)[number]): fc.Arbitrary<string> {
  const names = fc.constantFrom(...Object.keys(schema.properties));
  const replaced = fc.dictionary(
    fc.oneof({ weight: 20, arbitrary: names }, { weight: 1, arbitrary: fc.string({ maxLength: 6 }) }),
    field,
    { maxKeys: 3 },
  );
  const object = replaced.map((fields) => JSON.stringify({ ...sound, ...fields }));
  const mangled = fc.tuple(object, fc.nat(), fc.string({ maxLength: 3 })).map(([text, at, insert]) => {
    const cut = at % (text.length + 1);
    return text.slice(0, cut) + insert + text.slice(cut + 1);
  });
  return fc.oneof({ weight: 8, arbitrary: object }, { weight: 2, arbitrary: mangled }, { weight: 1, arbitrary: fc.json() });
}

const anyBody = fc.nat({ max: routes.length - 1 }).chain((i) => {
  const route = routes[i] ?? routes[0];
  if (route === undefined) throw new Error('no routes');
  return bodyFor(route).map((body) => ({ url: route.url, body }));
});

const statuses = new Map<number, number>();

function check(url: string, status: number, type: string, text: string): void {
  statuses.set(status, (statuses.get(status) ?? 0) + 1);
  if (type.startsWith('text/event-stream')) {
    expect(status).toBe(200);
    const events = text.split('\n\n').filter((event) => event.includes('data: '));
    for (const event of events) {
      const data = event.slice(event.indexOf('data: ') + 6);
      if (data !== '[DONE]') JSON.parse(data);
    }
    expect(text.endsWith(url === '/v1/responses' ? '}\n\n' : 'data: [DONE]\n\n')).toBe(true);
    return;
  }
  expect(type).toContain('application/json');
  const body = JSON.parse(text) as { error?: { message: unknown; type: unknown } };
  if (status === 200) {
    expect(body).not.toHaveProperty('error.message');
    return;
  }
  expect([400, 404, 413, 429]).toContain(status); // never 500
  expect(Object.keys(body)).toEqual(['error']);
  expect(typeof body.error?.message).toBe('string');
  expect(typeof body.error?.type).toBe('string');
}

test(`${BODIES} bodies`, async () => {
  const send = async ({ url, body }: { url: string; body: string }) => {
    const answer = await server.app.inject({ method: 'POST', url, body, headers: { 'content-type': 'application/json' } });
    check(url, answer.statusCode, String(answer.headers['content-type']), answer.payload);
  };
  await fc.assert(fc.asyncProperty(anyBody, send), { numRuns: BODIES, endOnFailure: BODIES > 10_000 });
  const answer = await server.client.chat.completions.create({
    model: MODEL,
    messages: [{ role: 'user', content: 'Hi' }],
    max_tokens: 2,
  });
  expect(answer.choices).toHaveLength(1);
  await expect.poll(() => server.model.stats().running).toBe(0);
  expect(server.model.stats().heldPages).toBe(0);
  expect(statuses.get(200) ?? 0).toBeGreaterThan(BODIES / 50); // not all of them were refused at the door
  expect(statuses.get(400) ?? 0).toBeGreaterThan(BODIES / 50);
  console.log(`fuzz: ${[...statuses].map(([status, count]) => `${count} x ${status}`).join(', ')}`);
}, 1_800_000);
