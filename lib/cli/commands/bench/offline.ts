/** sigmoe bench throughput and latency: the engine without a server, with the flags and results of vLLM's commands. */
import { Command } from 'commander';
import {
  type BenchRequest,
  benchLatency,
  benchThroughput,
  LATENCY_PERCENTS,
  latencyReport,
  latencyResult,
  latencyText,
  OFFLINE_SAMPLING,
  randomRequests,
  throughputResult,
  throughputText,
} from '../../../bench/index.js';
import type { Model } from '../../../index.js';
import { CliError, EXIT_USAGE } from '../../failure.js';
import { addEngineFlags, type EngineFlags, integer, number } from '../../flags.js';
import { json } from '../../format.js';
import { interruptible } from '../../interrupt.js';
import { loadModel } from '../../load.js';
import { progress } from '../../progress.js';
import { write } from '../../terminal.js';
import { addDatasetFlags, atLeast, type DatasetFlags, readDataset } from './dataset.js';
import { commandLine, save } from './files.js';

interface OfflineFlags extends EngineFlags {
  model?: string;
  temperature: number;
  topP: number;
  seed: number;
  outputJson?: string;
  json?: boolean;
}

interface ThroughputFlags extends OfflineFlags, DatasetFlags {}

interface LatencyFlags extends OfflineFlags {
  inputLen: number;
  outputLen: number;
  batchSize: number;
  numItersWarmup: number;
  numIters: number;
  html?: string;
}

export function benchThroughputCommand(): Command {
  const command = new Command('throughput')
    .summary('measure the engine with many requests at once, without a server')
    .description(
      'Answers all requests at once in this process, each to its full length. Keys are those of `vllm bench throughput`.',
    )
    .argument('[model]', 'model folder')
    .addHelpText('after', '\nExample:\n  sigmoe bench throughput models/nano --num-prompts 100 --output-len 64');
  return addEngineFlags(addDatasetFlags(addOfflineFlags(command))).action(throughput);
}

export function benchLatencyCommand(): Command {
  const command = new Command('latency')
    .summary('measure how long one batch takes, without a server')
    .description(
      'Answers the same batch of random prompts again and again in this process, with the prefix cache off. Keys are those of ' +
        '`vllm bench latency`.',
    )
    .argument('[model]', 'model folder')
    .option('--input-len <tokens>', 'tokens of a prompt', integer, 32)
    .option('--output-len <tokens>', 'tokens of an answer', integer, 128)
    .option('--batch-size <n>', 'requests answered together', integer, 8)
    .option('--num-iters-warmup <n>', 'batches before those that count', integer, 10)
    .option('--num-iters <n>', 'batches that count', integer, 30)
    .option('--seed <n>', 'of the prompts', integer, 0)
    .option('--html <file>', 'write a report with plots')
    .addHelpText('after', '\nExample:\n  sigmoe bench latency models/nano --batch-size 4 --output-len 32 --num-iters 5');
  return addEngineFlags(addOfflineFlags(command)).action(latency);
}

function addOfflineFlags(command: Command): Command {
  return command
    .option('--model <folder>', 'the model folder, as a flag')
    .option('--temperature <n>', '', number, OFFLINE_SAMPLING.temperature)
    .option('--top-p <n>', '', number, OFFLINE_SAMPLING.topP)
    .option('--output-json <file>', 'write the result to a file')
    .option('--json', 'print the result as JSON');
}

async function throughput(folder: string | undefined, flags: ThroughputFlags): Promise<void> {
  await withModel(folder, flags, async (model, signal) => {
    const { requests } = await readDataset(flags, model.tokenizer);
    const bar = progress('requests');
    try {
      const onDone = (done: number) => bar.update(done, requests.length, '');
      const { seconds, promptTokens, outputTokens } = await benchThroughput(model, requests, flags, { onDone, signal });
      bar.stop();
      const text = throughputText(seconds, requests.length, promptTokens, outputTokens);
      await finish(flags, throughputResult(seconds, requests.length, promptTokens + outputTokens), text);
    } finally {
      bar.stop();
    }
  });
}

async function latency(folder: string | undefined, flags: LatencyFlags): Promise<void> {
  atLeast('--input-len', flags.inputLen, 1);
  atLeast('--output-len', flags.outputLen, 1);
  atLeast('--batch-size', flags.batchSize, 1);
  atLeast('--num-iters-warmup', flags.numItersWarmup, 0);
  atLeast('--num-iters', flags.numIters, 1);
  await withModel(folder, { ...flags, prefixCache: false }, async (model, signal) => {
    const lengths = { inputLen: flags.inputLen, outputLen: flags.outputLen, rangeRatio: 0, prefixLen: 0 };
    const batch: BenchRequest[] = randomRequests(model.tokenizer, flags.batchSize, lengths, flags.seed);
    const counts = { warmups: flags.numItersWarmup, iterations: flags.numIters };
    const bar = progress('batches');
    try {
      const onDone = (done: number) => bar.update(done, counts.warmups + counts.iterations, '');
      const latencies = await benchLatency(model, batch, counts, flags, { onDone, signal });
      bar.stop();
      await finish(flags, latencyResult(latencies), latencyText(latencies));
      if (flags.html === undefined) return;
      const { device } = model.info;
      const facts = [
        ['model', model.info.path],
        ['device', `${device.description}, ${device.kernels}, ${device.compute}, ${device.threads} threads`],
        ['batch', `${flags.batchSize} requests of ${flags.inputLen} tokens in, ${flags.outputLen} out; prefix cache off`],
        ['iterations', `${flags.numIters} after ${flags.numItersWarmup} that do not count`],
        ['date', new Date().toISOString()],
        ['command', commandLine()],
      ] as const;
      await save(flags.html, latencyReport(`Latency benchmark of ${model.info.path}`, facts, latencies, LATENCY_PERCENTS));
    } finally {
      bar.stop();
    }
  });
}

async function withModel(
  folder: string | undefined,
  flags: OfflineFlags,
  body: (model: Model, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const path = folder ?? flags.model;
  if (path === undefined || (folder !== undefined && flags.model !== undefined)) {
    throw new CliError('expected one model folder', 'as an argument or as --model', EXIT_USAGE);
  }
  await interruptible(async (signal) => {
    await using model = await loadModel(path, flags, signal);
    await body(model, signal);
  });
}

async function finish(flags: OfflineFlags, result: Record<string, unknown>, text: string): Promise<void> {
  await write(flags.json ? `${json(result)}\n` : text);
  if (flags.outputJson !== undefined) await save(flags.outputJson, `${json(result, 4)}\n`);
}
