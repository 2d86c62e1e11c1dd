/** The flags that say what the requests of a benchmark ask, and the requests made of them. */
import type { Command } from 'commander';
import { type BenchRequest, bundledRequests, fileRequests, randomRequests } from '../../../bench/index.js';
import type { Tokenizer } from '../../../index.js';
import { CliError, EXIT_USAGE } from '../../failure.js';
import { integer, number } from '../../flags.js';
import { readText } from '../../input.js';

export interface DatasetFlags {
  datasetName: string;
  datasetPath?: string;
  numPrompts: number;
  randomInputLen: number;
  randomOutputLen: number;
  randomRangeRatio: number;
  randomPrefixLen: number;
  customOutputLen: number;
  /** Given, these count in place of the lengths of the dataset. */
  inputLen?: number;
  outputLen?: number;
  seed: number;
}

const NAMES = ['random', 'prompts', 'custom'];

export function addDatasetFlags(command: Command): Command {
  return command
    .optionsGroup('Dataset:')
    .option('--dataset-name <name>', 'random | prompts (a bundled list) | custom (JSON lines with "prompt")', 'random')
    .option('--dataset-path <file>', 'the file of a custom dataset')
    .option('--num-prompts <n>', 'requests that count', integer, 1000)
    .option('--random-input-len <tokens>', 'tokens of a random prompt, exactly', integer, 1024)
    .option('--random-output-len <tokens>', 'longest answer to a random prompt', integer, 128)
    .option('--random-range-ratio <share>', 'random lengths vary by this share, up and down', number, 0)
    .option('--random-prefix-len <tokens>', 'tokens that all random prompts begin with, beside their own', integer, 0)
    .option('--custom-output-len <tokens>', 'longest answer to other prompts', integer, 256)
    .option('--input-len <tokens>', 'the same as --random-input-len', integer)
    .option('--output-len <tokens>', 'longest answer, whatever the dataset', integer)
    .option('--seed <n>', 'of prompts, lengths and arrivals', integer, 0);
}

export interface Dataset {
  requests: BenchRequest[];
  /** One more of the same kind; of a random dataset it is none of `requests`, whose prompts stay unknown to any cache. */
  warmup: BenchRequest;
}

export async function readDataset(flags: DatasetFlags, tokenizer: Tokenizer | undefined): Promise<Dataset> {
  const { datasetName, datasetPath, numPrompts } = flags;
  const { inputLen, outputLen } = lengthsOf(flags);
  if (!NAMES.includes(datasetName)) {
    throw new CliError(`--dataset-name ${datasetName}: there are ${NAMES.join(', ')}`, '', EXIT_USAGE);
  }
  atLeast('--num-prompts', numPrompts, 1);
  atLeast('the length of an answer', outputLen, 1);
  if ((datasetName === 'custom') !== (datasetPath !== undefined)) {
    throw new CliError('--dataset-path and --dataset-name custom go together', '', EXIT_USAGE);
  }
  if (datasetPath !== undefined) {
    return startingAgain(fileRequests(await readText(datasetPath, 'dataset'), datasetPath, tokenizer, numPrompts, outputLen));
  }
  if (datasetName === 'prompts') return startingAgain(bundledRequests(tokenizer, numPrompts, outputLen));
  if (tokenizer === undefined) {
    const hint = 'name a folder with tokenizer.json by --tokenizer, or take --dataset-name prompts';
    throw new CliError('random prompts of an exact length need a tokenizer', hint, EXIT_USAGE);
  }
  atLeast('the length of a prompt', inputLen, 1);
  atLeast('--random-prefix-len', flags.randomPrefixLen, 0);
  if (!(flags.randomRangeRatio >= 0 && flags.randomRangeRatio < 1)) {
    throw new CliError(`--random-range-ratio ${flags.randomRangeRatio}: expected 0 or more and less than 1`, '', EXIT_USAGE);
  }
  const lengths = {
    inputLen,
    outputLen,
    rangeRatio: flags.randomRangeRatio,
    prefixLen: flags.randomPrefixLen,
  };
  const [warmup, ...requests] = randomRequests(tokenizer, numPrompts + 1, lengths, flags.seed);
  return { warmup: warmup as BenchRequest, requests };
}

/** Tokens of a random prompt, and of the longest answer. */
export function lengthsOf(flags: DatasetFlags): { inputLen: number; outputLen: number } {
  const ofDataset = flags.datasetName === 'random' ? flags.randomOutputLen : flags.customOutputLen;
  return { inputLen: flags.inputLen ?? flags.randomInputLen, outputLen: flags.outputLen ?? ofDataset };
}

function startingAgain(requests: BenchRequest[]): Dataset {
  return { warmup: requests[0] as BenchRequest, requests };
}

export function atLeast(flag: string, value: number, least: number): void {
  if (!(value >= least)) throw new CliError(`${flag} ${value}: expected ${least} or more`, '', EXIT_USAGE);
}

export function positive(flag: string, value: number): void {
  if (!(value > 0)) throw new CliError(`${flag} ${value}: expected more than 0`, '', EXIT_USAGE);
}
