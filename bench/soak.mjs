// Many streams at once for a long time, as clients behave: some read to the end, some leave, some send nonsense. Every
// answer is compared with the one the same prompt got alone. Prints one JSON object; exits with 1 if anything was wrong.
//
//   npm run build && node bench/soak.mjs [seconds] [streams] [model]
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';

const self = fileURLToPath(import.meta.url);
const MB = 2 ** 20;

// ---- the server, in a process of its own -------------------------------------------------------------------------

async function serverMain(path, streams) {
  const { Model } = await import('../dist/index.js');
  const { buildApp } = await import('../dist/server/index.js');
  const model = await Model.load(path, { threads: 1, maxNumSeqs: Math.min(64, streams), maxWaiting: 4 * streams });
  const app = buildApp(model, { modelName: 'soak' });
  const url = await app.listen({ port: 0, host: '127.0.0.1' });
  const delay = monitorEventLoopDelay({ resolution: 1 });
  process.on('message', async (order) => {
    if (order === 'begin') delay.enable();
    if (order === 'state') {
      const p = (share) => Math.max(0, delay.percentile(share) / 1e6 - 1); // the timer's own period is no delay
      process.send({ stats: model.stats(), rss: process.memoryUsage().rss, p50: p(50), p99: p(99), p999: p(99.9), max: p(100) });
    }
    if (order === 'end') {
      await app.close();
      await model.dispose();
      process.disconnect();
    }
  });
  process.send({ url });
}

// ---- clients -----------------------------------------------------------------------------------------------------

const PROMPTS = ['What helps against fever?', '头痛怎么办?', 'Why do I cough at night?', 'How much water should I drink?', 'Is 38.5 high?']
  .flatMap((question) => ['', ' Answer briefly.', ' I am 70 years old.', ' It began yesterday.'].map((more) => question + more));
const LENGTHS = [8, 40, 120, 300];
const BAD = ['{', '[]', '{"messages":[]}', '{"messages":[{"role":"user","content":"x"}],"nonsense":1}', '{"prompt":1}', '{"messages":7}'];
const pick = (list) => list[Math.floor(Math.random() * list.length)];

const counts = { whole: 0, left: 0, aborted: 0, refused: 0, large: 0, wrong: 0, lost: 0, failed: 0, tokens: 0 };
const problems = [];

function problem(kind, what) {
  counts[kind] += 1;
  if (problems.length < 20) problems.push(`${kind}: ${what}`);
}

const bodyOf = (prompt, length, stream) =>
  JSON.stringify({
    messages: [{ role: 'user', content: prompt }],
    temperature: 0,
    max_tokens: length,
    stream,
    ...(stream ? { stream_options: { include_usage: true } } : {}),
  });

/** Text of a stream; `limit` leaves after so many events. */
async function readStream(response, limit = Infinity) {
  let [rest, text, done, usage, events] = ['', '', false, null, 0];
  const decoder = new TextDecoder();
  for await (const part of response.body) {
    const blocks = (rest + decoder.decode(part, { stream: true })).split('\n\n');
    rest = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith('data: ')) continue;
      if (block === 'data: [DONE]') done = true;
      else {
        const event = JSON.parse(block.slice(6));
        if (event.error) throw new Error(event.error.message);
        text += event.choices[0]?.delta.content ?? '';
        usage = event.usage ?? usage;
      }
      if (++events >= limit) return { text, done, usage };
    }
  }
  return { text, done, usage };
}

function difference(prompt, length, text, wanted) {
  const at = [...text].findIndex((character, i) => character !== [...wanted][i]);
  const from = Math.max(0, at - 20);
  return `${JSON.stringify(prompt)} ${length}: at ${at} of ${text.length} ${JSON.stringify(text.slice(from, at + 20))}, alone ${JSON.stringify(wanted.slice(from, at + 20))}`;
}

async function client(url, expected, until) {
  const post = (path, body, signal) => fetch(url + path, { method: 'POST', body, signal });
  while (performance.now() < until) {
    const [prompt, length, dice] = [pick(PROMPTS), pick(LENGTHS), Math.random()];
    const wanted = expected.get(`${prompt} ${length}`);
    try {
      if (dice < 0.7) {
        const { text, done, usage } = await readStream(await post('/v1/chat/completions', bodyOf(prompt, length, true)));
        counts.whole += 1;
        counts.tokens += usage?.completion_tokens ?? 0;
        if (!done || usage === null) problem('lost', `a stream of ${length} tokens ended without its end`);
        else if (text !== wanted) problem('wrong', difference(prompt, length, text, wanted));
      } else if (dice < 0.85) {
        const controller = new AbortController();
        const response = await post('/v1/chat/completions', bodyOf(prompt, length, true), controller.signal);
        const { text } = await readStream(response, 1 + Math.floor(Math.random() * length));
        counts.left += 1;
        controller.abort();
        if (!wanted.startsWith(text)) problem('wrong', difference(prompt, length, text, wanted));
      } else if (dice < 0.9) {
        const signal = AbortSignal.timeout(Math.floor(Math.random() * 200));
        await post('/v1/chat/completions', bodyOf(prompt, length, false), signal).then((r) => r.text(), () => {});
        counts.aborted += 1;
      } else if (dice < 0.998) {
        const response = await post(pick(['/v1/chat/completions', '/v1/completions', '/v1/responses', '/nothing']), pick(BAD));
        const body = await response.json();
        counts.refused += 1;
        if (response.status < 400 || response.status >= 500 || !body.error?.message) problem('wrong', `a bad request got ${response.status}`);
      } else {
        const response = await post('/tokenize', JSON.stringify({ prompt: `${prompt} `.repeat(15_000) }));
        const { count } = await response.json();
        counts.large += 1;
        if (!(count > 50_000)) problem('wrong', `a large prompt had ${count} tokens`);
      }
    } catch (error) {
      if (error.name !== 'AbortError' && error.name !== 'TimeoutError') problem('failed', error.cause?.message ?? error.message);
    }
  }
}

async function clientMain(seconds, streams, path) {
  const server = fork(self, ['--server', path, String(streams)]);
  const ended = once(server, 'exit');
  const say = async (order) => {
    server.send(order);
    return (await once(server, 'message'))[0];
  };
  const [{ url }] = await once(server, 'message');
  const expected = new Map();
  for (const prompt of PROMPTS) {
    for (const length of LENGTHS) {
      const { text } = await readStream(await fetch(`${url}/v1/chat/completions`, { method: 'POST', body: bodyOf(prompt, length, true) }));
      expected.set(`${prompt} ${length}`, text);
    }
  }
  server.send('begin');
  const begun = performance.now();
  const clients = Array.from({ length: streams }, () => client(url, expected, begun + seconds * 1000));
  const memory = [];
  const sampler = setInterval(async () => memory.push((await say('state')).rss), Math.max(1000, (seconds * 1000) / 40));
  await Promise.all(clients);
  clearInterval(sampler);
  const took = (performance.now() - begun) / 1000;
  let state = await say('state');
  for (let i = 0; i < 100 && state.stats.running + state.stats.waiting > 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    state = await say('state');
  }
  server.send('end');
  const [code] = await ended;

  const { freePages, cachedPages, heldPages, totalPages, preemptions, steps } = state.stats;
  const pagesHold = freePages + cachedPages + heldPages === totalPages && heldPages === 0 && state.stats.running === 0;
  const ms = (value) => Math.round(value * 10) / 10;
  const half = memory.slice(Math.floor(memory.length / 2));
  const report = {
    seconds: Math.round(took),
    streams,
    ...counts,
    tokensPerSecond: Math.round(counts.tokens / took),
    eventLoopDelayMs: { p50: ms(state.p50), p99: ms(state.p99), p999: ms(state.p999), max: ms(state.max) },
    rssMiB: {
      atTenth: Math.round((memory[Math.floor(memory.length / 10)] ?? 0) / MB),
      atHalf: Math.round((half[0] ?? 0) / MB),
      atEnd: Math.round((memory.at(-1) ?? 0) / MB),
    },
    pages: { freePages, cachedPages, heldPages, totalPages, hold: pagesHold },
    preemptions,
    steps,
    serverExit: code,
    problems,
  };
  console.log(JSON.stringify(report, null, 2));
  const wrong = counts.wrong + counts.lost + counts.failed > 0 || !pagesHold || code !== 0 || state.p99 > 50;
  process.exitCode = wrong ? 1 : 0;
}

const args = process.argv.slice(2);
if (args[0] === '--server') await serverMain(args[1], Number(args[2]));
else await clientMain(Number(args[0] ?? 600), Number(args[1] ?? 200), args[2] ?? 'models/nano');
