// What the server costs: 64 streams at once through HTTP, against the same generations in process. The engine computes on
// one core, with one thread; server and client share another. Prints steps and tokens per second of each and their ratio.
//
//   npm run build && node bench/server_overhead.mjs [model] [streams] [tokens]
import { execFileSync, fork } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { once } from 'node:events';

const [model = 'models/nano', streams = '64', tokens = '400'] = process.argv.slice(2);
const N = Number(streams);
const MAX_TOKENS = Number(tokens);
const ROUNDS = 5;
const body = {
  prompt: 'A headache that comes with fever',
  max_tokens: MAX_TOKENS,
  temperature: 0.7,
  ignore_eos: true,
  stream: true,
};

/** Pins a thread of this process, or the whole process, to a core. */
function pin(core, id) {
  execFileSync('taskset', ['-pc', String(core), String(id)], { stdio: 'ignore' });
}

function pinEngine(core) {
  for (const id of readdirSync('/proc/self/task')) {
    if (readFileSync(`/proc/self/task/${id}/comm`, 'utf8').startsWith('sigmoe-')) pin(core, id);
  }
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

async function loadPinned() {
  pin(1, process.pid);
  for (const id of readdirSync('/proc/self/task')) pin(1, id);
  const { Model } = await import('../dist/index.js');
  const loaded = await Model.load(model, { threads: 1, maxNumSeqs: N, prefixCache: true });
  pinEngine(0);
  return loaded;
}

/** In process: every stream is read chunk by chunk, as an application would. */
async function inProcess() {
  const loaded = await loadPinned();
  const read = async (seed) => {
    const generation = loaded.generate({
      prompt: body.prompt,
      maxTokens: MAX_TOKENS,
      temperature: body.temperature,
      ignoreEos: true,
      seed,
    });
    let characters = 0;
    for await (const chunk of generation) characters += chunk.text.length;
    return characters;
  };
  process.send(await measure(loaded, (seed) => read(seed)));
  await loaded.dispose();
}

async function measure(loaded, run) {
  const rounds = [];
  for (let round = 0; round <= ROUNDS; round++) {
    const before = loaded.stats();
    const from = performance.now();
    await Promise.all(Array.from({ length: N }, (_, i) => run(1 + i)));
    const seconds = (performance.now() - from) / 1000;
    const after = loaded.stats();
    if (round > 0) rounds.push({ steps: (after.steps - before.steps) / seconds, tokens: (N * MAX_TOKENS) / seconds });
  }
  return { steps: median(rounds.map((r) => r.steps)), tokens: median(rounds.map((r) => r.tokens)) };
}

/** The server's side: counts its own steps between the marks of the client. */
async function server() {
  const loaded = await loadPinned();
  const { buildApp } = await import('../dist/server/app.js');
  const app = buildApp(loaded, { modelName: 'nano' });
  const address = await app.listen({ port: 0, host: '127.0.0.1' });
  process.on('message', (message) => {
    if (message === 'stats') process.send({ stats: loaded.stats() });
    else process.exit(0);
  });
  process.send({ address });
}

/** The client's side: as many HTTP streams, read event by event. */
async function client(address) {
  const { Agent, request } = await import('node:http');
  const agent = new Agent({ keepAlive: true, maxSockets: N });
  const stream = (seed) =>
    new Promise((resolve, reject) => {
      const options = { agent, method: 'POST', headers: { 'content-type': 'application/json' } };
      const call = request(`${address}/v1/completions`, options, (answer) => {
        let events = 0;
        let rest = '';
        answer.setEncoding('utf8');
        answer.on('data', (text) => {
          const lines = (rest + text).split('\n\n');
          rest = lines.pop() ?? '';
          for (const line of lines) if (line !== 'data: [DONE]' && JSON.parse(line.slice(6)).choices) events++;
        });
        answer.on('end', () => (answer.statusCode === 200 && events > 0 ? resolve(events) : reject(new Error(`status ${answer.statusCode}`))));
        answer.on('error', reject);
      });
      call.on('error', reject);
      call.end(JSON.stringify({ ...body, seed }));
    });
  for (let round = 0; round <= ROUNDS; round++) {
    process.send('begin');
    await once(process, 'message');
    const from = performance.now();
    await Promise.all(Array.from({ length: N }, (_, i) => stream(1 + i)));
    process.send({ seconds: (performance.now() - from) / 1000 });
    await once(process, 'message');
  }
  agent.destroy();
  process.exit(0);
}

async function throughHttp() {
  const serving = fork(process.argv[1], [model, streams, tokens, 'server']);
  const [{ address }] = await once(serving, 'message');
  const asking = fork(process.argv[1], [model, streams, tokens, 'client', address]);
  pin(1, asking.pid);
  const stats = async () => {
    serving.send('stats');
    return (await once(serving, 'message'))[0].stats;
  };
  const rounds = [];
  for (let round = 0; round <= ROUNDS; round++) {
    await once(asking, 'message');
    const before = await stats();
    asking.send('go');
    const [{ seconds }] = await once(asking, 'message');
    const after = await stats();
    if (round > 0) rounds.push({ steps: (after.steps - before.steps) / seconds, tokens: (N * MAX_TOKENS) / seconds });
    asking.send('next');
  }
  serving.send('end');
  return { steps: median(rounds.map((r) => r.steps)), tokens: median(rounds.map((r) => r.tokens)) };
}

const role = process.argv[5];
if (role === 'server') await server();
else if (role === 'client') await client(process.argv[6]);
else if (role === 'inprocess') await inProcess();
else {
  const alone = fork(process.argv[1], [model, streams, tokens, 'inprocess']);
  const [inside] = await once(alone, 'message');
  const http = await throughHttp();
  const line = (name, { steps, tokens: rate }) => `${name.padEnd(11)}${steps.toFixed(1).padStart(8)} steps/s ${rate.toFixed(0).padStart(8)} tokens/s`;
  console.log(`${model}, ${N} streams of ${MAX_TOKENS} tokens, median of ${ROUNDS}`);
  console.log(line('in process', inside));
  console.log(line('HTTP', http));
  console.log(`ratio of steps ${((100 * http.steps) / inside.steps).toFixed(1)}%`);
}
