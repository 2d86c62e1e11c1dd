/** sigmoe inspect: what a model folder holds, what it costs in memory, and what fits on this machine. */
import os from 'node:os';
import Table from 'cli-table3';
import { Command } from 'commander';
import { inspect, type MemoryPlan, type ModelInfo, memoryPlan } from '../../index.js';
import { addModelFlags, type ModelFlags, number } from '../flags.js';
import { bytes, count, integer, json, percent } from '../format.js';
import { findModel } from '../load.js';
import { write } from '../terminal.js';

interface InspectFlags extends ModelFlags {
  json?: boolean;
  tensorParallelSize?: number;
  enableExpertParallel?: boolean;
  context?: number;
  maxBatchedTokens?: number;
}

export function inspectCommand(): Command {
  const command = new Command('inspect')
    .summary('show what a model folder holds and what fits in memory')
    .description('Shows architecture, parameters and memory of a model folder from its headers; no weights are loaded.')
    .argument('<model>', 'model folder, or owner/name of a hub')
    .option('--tensor-parallel-size <n>', 'show what each of so many ranks would keep', number)
    .option('--enable-expert-parallel', 'with whole experts on each rank')
    .option('--context <tokens>', 'plan memory for so many tokens of KV cache; default: the context of the model', number)
    .option(
      '--max-batched-tokens <n>',
      'and for prompts read in chunks of so many tokens; default: 512, where a load on cuda takes 8192',
      number,
    )
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExample:\n  sigmoe inspect models/nano');
  return addModelFlags(command).action(async (model: string, flags: InspectFlags) => {
    const { tensorParallelSize, enableExpertParallel, context, maxBatchedTokens } = flags;
    const info = await inspect((await findModel(model, flags)).path, { tensorParallelSize, enableExpertParallel });
    const fit = whatFits(info, availableBytes());
    const plan = memoryPlan(info, { context, maxBatchedTokens });
    await write(flags.json ? `${json({ ...describe(info), plan, fit }, 2)}\n` : `${report(info, plan, fit)}\n`);
  });
}

/** Memory this process may still take: what the machine has free, or what its container has left. */
function availableBytes(): number {
  return process.availableMemory?.() ?? os.freemem();
}

interface Fit {
  availableBytes: number;
  /** Tokens of KV cache beside the weights, over all sequences; 0 when the weights alone do not fit. */
  kvTokens: number;
  /** How many sequences of a length fit at once. */
  sequences: { context: number; count: number }[];
}

function whatFits(info: ModelInfo, available: number): Fit {
  const { weightBytes, workspaceBytes, kvBytesPerToken } = info.memory;
  const left = Math.max(0, available - weightBytes - workspaceBytes);
  const kvTokens = Math.floor(left / kvBytesPerToken);
  const contexts = [...new Set([Math.min(1024, info.context), Math.min(4096, info.context), info.context])];
  return {
    availableBytes: available,
    kvTokens,
    sequences: contexts.map((context) => ({ context, count: Math.floor(kvTokens / context) })),
  };
}

// The facts of the folder, without those that only a loaded model has.
function describe({ path, architecture, context, vocabSize, weightFormat, shape, parameters, memory, ranks }: ModelInfo) {
  return { path, architecture, weightFormat, context, vocabSize, shape, parameters, memory, ranks };
}

function report(info: ModelInfo, plan: MemoryPlan, fit: Fit): string {
  const { shape, parameters, memory } = info;
  const plain = { chars: noBorders, style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 } };
  const facts = new Table(plain);
  facts.push(
    ['architecture', info.architecture],
    [
      'layers',
      `${shape.layers} (${shape.denseLayers} dense, ${shape.layers - shape.denseLayers} of experts)` +
        (shape.mtpLayers > 0 ? ` + ${shape.mtpLayers} MTP` : ''),
    ],
    [
      'attention',
      `${shape.heads} query heads on ${shape.kvHeads} KV heads of ${shape.headDim}, width ${integer(shape.hiddenSize)}`,
    ],
    ['experts', `${shape.activeExperts} of ${shape.experts} a token + ${shape.sharedExperts} shared`],
    ['vocabulary', integer(info.vocabSize)],
    ['context', `${integer(info.context)} tokens`],
    ['weights', info.weightFormat],
    ['checkpoint', bytes(memory.checkpointBytes)],
    ['in memory', `${bytes(memory.weightBytes)} of weights, ${bytes(memory.kvBytesPerToken)} of KV cache a token`],
    ['whole context', wholeContext(info)],
    ['memory plan', planned(plan)],
  );

  const parts = new Table({ ...plain, head: ['part', 'parameters', 'share'], colAligns: ['left', 'right', 'right'] });
  const isMtp = ({ part }: { part: string }) => part === 'MTP'; // not part of the model that answers
  for (const { part, parameters: n } of parameters.parts.filter((row) => !isMtp(row))) {
    parts.push([part, count(n), percent(n / parameters.total)]);
  }
  parts.push(
    ['all', count(parameters.total), ''],
    ['active per token', count(parameters.active), percent(parameters.active / parameters.total)],
    ...parameters.parts.filter(isMtp).map(({ parameters: n }) => ['MTP, beside them', count(n), '']),
  );

  const room =
    fit.kvTokens === 0
      ? `The weights do not fit in the ${bytes(fit.availableBytes)} free on this machine.`
      : [
          `In the ${bytes(fit.availableBytes)} free on this machine, beside the weights: ${integer(fit.kvTokens)} tokens of KV cache,`,
          ...fit.sequences.map(({ context, count: n }) => `  ${integer(n)} sequences of ${integer(context)} tokens`),
        ].join('\n');
  return `${facts.toString()}\n\n${parts.toString()}\n\n${rankTable(info)}${room}`.replace(/ +$/gm, '');
}

/** What each rank keeps, where there are several. */
function rankTable({ ranks }: ModelInfo): string {
  if (ranks.length < 2) return '';
  const style = { head: [], border: [], 'padding-left': 0, 'padding-right': 2 };
  const head = ['rank', 'weights', 'KV cache a token'];
  const table = new Table({ chars: noBorders, style, head, colAligns: ['left', 'right', 'right'] });
  for (const [rank, { weightBytes, kvBytesPerToken }] of ranks.entries()) {
    table.push([String(rank), bytes(weightBytes), bytes(kvBytesPerToken)]);
  }
  return `${table.toString()}\n\n`;
}

/** All of it for one context, read in chunks: the estimate of what a device needs. */
function planned({ context, maxBatchedTokens, weightBytes, kvBytes, workspaceBytes, totalBytes }: MemoryPlan): string {
  return (
    `${bytes(totalBytes)} for ${integer(context)} tokens in chunks of ${integer(maxBatchedTokens)}: ${bytes(weightBytes)} of weights, ` +
    `${bytes(kvBytes)} of KV cache, about ${bytes(workspaceBytes)} of workspace`
  );
}

/** The KV cache of a sequence as long as the model allows; FP8 has a scale beside each head's values. */
function wholeContext({ context, memory, shape }: ModelInfo): string {
  const kvBytes = context * memory.kvBytesPerToken;
  const fp8Bytes = (kvBytes * (shape.headDim + 4)) / (2 * shape.headDim);
  return `${bytes(kvBytes)} of KV cache a sequence, ${bytes(fp8Bytes)} with --kv-cache-dtype fp8`;
}

const noBorders = Object.fromEntries(
  // biome-ignore format: one line reads better
  ['top', 'top-mid', 'top-left', 'top-right', 'bottom', 'bottom-mid', 'bottom-left', 'bottom-right', 'left', 'left-mid', 'mid', 'mid-mid', 'right', 'right-mid', 'middle'].map((name) => [name, '']),
);
