// What HTTP costs, and what the prefix cache saves. Prints one JSON object; exits with 1 where a target is missed.
//
//   npm run build && node bench/overhead.mjs [streams] [model]
//
// The engine thread has one core for itself; JavaScript, in process or as server and client, shares the other. The step rate is
// taken while all streams run. Targets: at least 90% of the step rate in process; a prompt of 1,500 tokens seen before
// computes at most 128 of them and gives its first token at least 4 times sooner.
import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { fileURLToPath } from 'node:url';

const self = fileURLToPath(import.meta.url);
const ENGINE_CORE = '0';
const SCRIPT_CORE = '1';
const ROUNDS = 7;
const OUTPUT_TOKENS = 200;
const PROMPT_TOKENS = 1500;
const SAMPLE_MS = 10;

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
const rounded = (value) => Math.round(value * 100) / 100;

// ---- the client, in a process of its own -------------------------------------------------------------------------

async function clientMain() {
  const { benchServe } = await import('../dist/bench/index.js');
  process.on('message', async ({ url, prompts, outputTokens }) => {
    const target = { baseUrl: url, endpoint: '/v1/completions', api: 'completions', model: 'auto', headers: {}, insecure: false };
    const requests = prompts.map((prompt) => ({ prompt, promptTokens: undefined, outputTokens }));
    const { measured } = await benchServe({
      target: { ...target, body: { ignore_eos: true, temperature: 0 } },
      requests,
      warmup: { ...requests[0], prompt: 'Hello', outputTokens: 1 },
      requestRate: Infinity,
      burstiness: 1,
      maxConcurrency: undefined,
      warmups: 0,
      seed: 0,
    });
    process.send({ completed: measured.completed, ttftMs: measured.samples.ttft });
  });
  process.send('ready');
}

// ---- the engine and the server -----------------------------------------------------------------------------------

function pin() {
  const threads = readdirSync('/proc/self/task');
  const name = (id) => readFileSync(`/proc/self/task/${id}/comm`, 'utf8').trim();
  const engine = threads.filter((id) => name(id).startsWith('sigmoe'));
  if (engine.length === 0) throw new Error('no thread of the engine was found by its name');
  for (const id of threads) {
    execFileSync('taskset', ['-pc', engine.includes(id) ? ENGINE_CORE : SCRIPT_CORE, id], { stdio: 'ignore' });
  }
}

async function withServer(path, options, body) {
  const { Model } = await import('../dist/index.js');
  const { buildApp } = await import('../dist/server/index.js');
  const model = await Model.load(path, { ...options, threads: 1 });
  const app = buildApp(model, { modelName: 'overhead' });
  const url = await app.listen({ port: 0, host: '127.0.0.1' });
  pin();
  const client = fork(self, ['client']);
  execFileSync('taskset', ['-apc', SCRIPT_CORE, String(client.pid)], { stdio: 'ignore' });
  await once(client, 'message');
  const ask = async (prompts, outputTokens) => {
    client.send({ url, prompts, outputTokens });
    const [answer] = await once(client, 'message');
    if (answer.completed !== prompts.length) throw new Error(`only ${answer.completed} of ${prompts.length} requests completed`);
    return answer;
  };
  try {
    return await body(model, ask);
  } finally {
    client.disconnect();
    await app.close();
    await model.dispose();
  }
}

// Steps a second while all streams run. A round in which a busy machine let them drift apart is taken again.
async function stepRate(model, streams, load, attempts = 3) {
  let first;
  let last;
  const timer = setInterval(() => {
    const { running, waiting, steps } = model.stats();
    if (running !== streams || waiting > 0) return;
    last = { steps, at: performance.now() };
    first ??= last;
  }, SAMPLE_MS);
  try {
    await load();
  } finally {
    clearInterval(timer);
  }
  if (first === undefined || last.steps - first.steps < OUTPUT_TOKENS / 4) {
    if (attempts === 1) throw new Error('the streams did not run together');
    return stepRate(model, streams, load, attempts - 1);
  }
  return ((last.steps - first.steps) * 1000) / (last.at - first.at);
}

async function stepRates(path, streams) {
  return withServer(path, { maxNumSeqs: streams, prefixCache: false }, async (model, ask) => {
    const prompts = Array.from({ length: streams }, (_, i) => `Question ${i}: what helps against fever?`);
    const inProcess = () =>
      Promise.all(
        prompts.map(async (prompt) => {
          const request = { prompt, maxTokens: OUTPUT_TOKENS, ignoreEos: true, temperature: 0 };
          for await (const _ of model.generate(request));
        }),
      );
    const overHttp = () => ask(prompts, OUTPUT_TOKENS);
    const rates = { inProcess: [], http: [] };
    for (const load of [inProcess, overHttp]) await load(); // warm
    for (let i = 0; i < ROUNDS; i++) {
      rates.inProcess.push(await stepRate(model, streams, inProcess));
      rates.http.push(await stepRate(model, streams, overHttp));
    }
    // Each round against the one beside it: a shared machine drifts.
    const shares = rates.http.map((rate, i) => rate / rates.inProcess[i]);
    return {
      streams,
      stepsPerSecond: rounded(median(rates.inProcess)),
      stepsPerSecondHttp: rounded(median(rates.http)),
      share: rounded(median(shares)),
      rounds: { inProcess: rates.inProcess.map(rounded), http: rates.http.map(rounded) },
    };
  });
}

async function prefixCache(path) {
  return withServer(path, {}, async (model, ask) => {
    const { randomRequests } = await import('../dist/bench/index.js');
    const lengths = { inputLen: PROMPT_TOKENS, outputLen: 1, rangeRatio: 0, prefixLen: 0 };
    const [warm, ...requests] = randomRequests(model.tokenizer, ROUNDS + 1, lengths, 1);
    await ask([warm.prompt], 1);
    const times = { cold: [], cached: [] };
    const computed = [];
    for (const { prompt } of requests) {
      times.cold.push((await ask([prompt], 1)).ttftMs[0]);
      const before = model.stats();
      times.cached.push((await ask([prompt], 1)).ttftMs[0]);
      const after = model.stats();
      const looked = after.prefixQueriedTokens - before.prefixQueriedTokens;
      computed.push(looked - (after.prefixHitTokens - before.prefixHitTokens));
    }
    const [cold, cached] = [median(times.cold), median(times.cached)];
    return {
      promptTokens: PROMPT_TOKENS,
      computedAgain: Math.max(...computed),
      ttftMs: rounded(cold),
      ttftMsCached: rounded(cached),
      sooner: rounded(cold / cached),
    };
  });
}

async function main() {
  const streams = Number(process.argv[2] ?? 64);
  const path = process.argv[3] ?? fileURLToPath(new URL('../models/nano', import.meta.url));
  if (availableParallelism() < 2) throw new Error('this needs two cores: one for the engine, one for JavaScript');
  const steps = await stepRates(path, streams);
  const prefix = await prefixCache(path);
  const reached = steps.share >= 0.9 && prefix.computedAgain <= 128 && prefix.sooner >= 4;
  const loadAverage = rounded(loadavg()[0]);
  console.log(JSON.stringify({ http: steps, prefixCache: prefix, loadAverage, reached }, undefined, 2));
  process.exitCode = reached ? 0 : 1;
}

await (process.argv[2] === 'client' ? clientMain() : main());
