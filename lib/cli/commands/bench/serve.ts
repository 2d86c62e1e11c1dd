/** sigmoe bench serve: the load of an OpenAI-compatible server, with the flags and results of `vllm bench serve`. */
import { stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { Command } from 'commander';
import {
  benchServe,
  type Facts,
  firstModel,
  type ResultFields,
  type ServeRun,
  type ServeSetup,
  serveReport,
  serveText,
  sglangResult,
  stamp,
  type Target,
  untilReady,
  vllmResult,
} from '../../../bench/index.js';
import { Tokenizer } from '../../../index.js';
import { CliError, EXIT_USAGE } from '../../failure.js';
import { integer as grouped, json } from '../../format.js';
import { interruptible } from '../../interrupt.js';
import { progress } from '../../progress.js';
import { dim, note, write } from '../../terminal.js';
import { addDatasetFlags, atLeast, type DatasetFlags, lengthsOf, positive, readDataset } from './dataset.js';
import { appendLine, commandLine, save } from './files.js';
import { addServeFlags, type ServeFlags } from './serve_flags.js';

export function benchServeCommand(): Command {
  const command = new Command('serve')
    .summary('measure an OpenAI-compatible server')
    .description(
      'Sends requests to an OpenAI-compatible server, of whatever make, and measures throughput and latencies. Flags, result keys ' +
        'and headings are those of `vllm bench serve`. A key is taken from OPENAI_API_KEY.',
    )
    .addHelpText(
      'after',
      '\nExample:\n  sigmoe bench serve --port 8000 --tokenizer models/nano --num-prompts 100 --max-concurrency 8',
    );
  return addDatasetFlags(addServeFlags(command)).action(serve);
}

async function serve(flags: ServeFlags): Promise<void> {
  check(flags);
  await interruptible(async (signal) => {
    const server = {
      baseUrl: (flags.baseUrl ?? `http://${flags.host.includes(':') ? `[${flags.host}]` : flags.host}:${flags.port}`).replace(
        /\/+$/,
        '',
      ),
      headers: { ...keyHeader(), ...flags.header },
      insecure: flags.insecure === true,
    };
    const waitSeconds = flags.readyCheckTimeoutSec;
    // A server that was told its model may list none, as long as it need not be waited for.
    const asked = flags.model === undefined || waitSeconds > 0;
    const listed = asked ? await untilReady(waitSeconds, () => firstModel(server, signal), signal) : '';
    const model = flags.model ?? listed;
    const tokenizerFolder = flags.tokenizer ?? ((await isFolder(model)) ? model : undefined);
    const tokenizer = tokenizerFolder === undefined ? undefined : await Tokenizer.load(tokenizerFolder);
    const chat = flags.backend === 'openai-chat';
    const endpoint = flags.endpoint ?? (chat ? '/v1/chat/completions' : '/v1/completions');
    const target: Target = { ...server, endpoint, api: chat ? 'chat' : 'completions', model, body: extraFields(flags) };
    const requestRate = flags.requestRate ?? Infinity;
    const runs: { setup: ServeSetup; run: ServeRun }[] = [];
    for (const [index, maxConcurrency] of (flags.maxConcurrency ?? [undefined]).entries()) {
      // Other random prompts for every run: none finds those of the one before it in the prefix cache.
      const { requests, warmup } = await readDataset({ ...flags, seed: flags.seed + index }, tokenizer);
      const bar = progress(maxConcurrency === undefined ? 'requests' : `concurrency ${maxConcurrency}`);
      try {
        const run = await benchServe({
          target,
          requests,
          warmup,
          requestRate,
          burstiness: flags.burstiness,
          seed: flags.seed,
          maxConcurrency,
          warmups: flags.numWarmups,
          goodput: flags.goodput,
          tokenizer,
          onDone: (done) => bar.update(done, requests.length, `${grouped(done)} of ${grouped(requests.length)}`),
          signal,
        });
        runs.push({ setup: setupOf(flags, model, tokenizerFolder, maxConcurrency), run });
      } finally {
        bar.stop();
      }
    }
    await report(flags, target, runs);
  });
}

function check(flags: ServeFlags): void {
  if (flags.baseUrl !== undefined && !/^https?:\/\/[^/]/.test(flags.baseUrl)) {
    throw new CliError(`--base-url ${flags.baseUrl}: expected http://... or https://...`, '', EXIT_USAGE);
  }
  positive('--request-rate', flags.requestRate ?? Infinity);
  positive('--burstiness', flags.burstiness);
  atLeast('--num-warmups', flags.numWarmups, 0);
}

// The environment, not a flag: a command line is seen by every user of the machine.
function keyHeader(): Record<string, string> {
  const key = process.env.OPENAI_API_KEY;
  return key === undefined || key === '' ? {} : { authorization: `Bearer ${key}` };
}

async function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

function extraFields({ datasetName, temperature, topP, topK, minP, extraBody, ...flags }: ServeFlags): Record<string, unknown> {
  // Random text is continued by random text: without this, answers end anywhere.
  const ignoreEos = flags.ignoreEos ?? (datasetName === 'random' ? true : undefined);
  const given = { ignore_eos: ignoreEos || undefined, temperature, top_p: topP, top_k: topK, min_p: minP };
  return { ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)), ...extraBody };
}

function setupOf(
  flags: ServeFlags,
  modelId: string,
  tokenizerId: string | undefined,
  maxConcurrency: number | undefined,
): ServeSetup {
  return {
    ...flags,
    randomInputLen: flags.inputLen ?? flags.randomInputLen,
    randomOutputLen: flags.outputLen ?? flags.randomOutputLen,
    date: new Date(),
    requestRate: flags.requestRate ?? Infinity,
    metadata: flags.metadata ?? {},
    label: flags.label,
    modelId,
    tokenizerId,
    maxConcurrency,
    goodput: flags.goodput,
    metrics: flags.percentileMetrics ?? ['ttft', 'tpot', 'itl'],
    percents: flags.metricPercentiles ?? [99],
    detailed: flags.saveDetailed === true,
  };
}

async function report(flags: ServeFlags, target: Target, runs: readonly { setup: ServeSetup; run: ServeRun }[]): Promise<void> {
  for (const { setup, run } of runs) {
    const result =
      flags.format === 'vllm'
        ? vllmResult(setup, run.measured, run.speculation)
        : sglangResult(setup, run.measured, run.speculation, run.retokenized);
    const text = flags.json ? `${json(result)}\n` : serveText(setup, run.measured, run.speculation);
    await write(text);
    if (flags.saveResult || flags.saveDetailed || flags.appendResult) await saveResult(flags, setup, result, runs.length);
    const failure = run.measured.requests.find(({ error }) => error !== '')?.error;
    if (failure !== undefined) note(`${run.measured.failed} requests failed; the first with: ${failure}`);
  }
  if (flags.html === undefined) return;
  const facts: Facts = [
    ['server', target.baseUrl + target.endpoint],
    ['model', target.model],
    ['dataset', datasetFact(flags)],
    ['request rate', rateFact(flags)],
    ['date', new Date().toISOString()],
    ['command', commandLine()],
    ...Object.entries(flags.metadata ?? {}),
  ];
  const pages = runs.map(({ setup, run }) => ({ ...run, maxConcurrency: setup.maxConcurrency }));
  await save(flags.html, serveReport(`Serving benchmark of ${target.model}`, facts, pages));
  note(dim(`report: ${flags.html}`));
}

function rateFact({ requestRate = Infinity, burstiness }: ServeFlags): string {
  return requestRate === Infinity ? 'all at once' : `${requestRate}/s, burstiness ${burstiness}`;
}

function datasetFact(flags: DatasetFlags): string {
  const { datasetName, numPrompts } = flags;
  const { inputLen, outputLen } = lengthsOf(flags);
  if (datasetName !== 'random') return `${datasetName}, ${numPrompts} requests of at most ${outputLen} tokens out`;
  const prefix = flags.randomPrefixLen > 0 ? ` after ${flags.randomPrefixLen} shared` : '';
  return `random, ${numPrompts} requests of ${inputLen} tokens in${prefix}, ${outputLen} out`;
}

// Lines where there are several results or the format is one of lines, else one object.
async function saveResult(flags: ServeFlags, setup: ServeSetup, result: ResultFields, runs: number): Promise<void> {
  const rate = setup.requestRate === Infinity ? 'inf' : setup.requestRate;
  const limit = setup.maxConcurrency === undefined ? '' : `-concurrency${setup.maxConcurrency}`;
  const made = `${setup.label ?? setup.backend}-${rate}qps${limit}-${basename(setup.modelId)}-${stamp(setup.date)}.json`;
  const path = join(flags.resultDir, flags.resultFilename ?? made);
  const lines = flags.appendResult || flags.format === 'sglang' || (runs > 1 && flags.resultFilename !== undefined);
  if (lines) await appendLine(path, json(result));
  else await save(path, json(result));
  note(dim(`result: ${path}`));
}
