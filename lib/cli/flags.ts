/**
 * The flags that commands share. Every flag is the kebab-case name of an option of the library, which checks ranges and
 * choices; here only the text of a flag is turned into a value.
 */
import { type Command, InvalidArgumentError } from 'commander';
import type { LoadOptions, SamplingOptions, Source } from '../index.js';

/** Where a model that is named by its id comes from. */
export interface ModelFlags {
  download?: boolean | undefined;
  revision?: string | undefined;
  source?: Source | undefined;
}

const ENGINE_NAMES = [
  'device',
  'kernels',
  'compute',
  'deterministic',
  'kvCacheDtype',
  'prefillAttention',
  'threads',
  'tensorParallelSize',
  'enableExpertParallel',
  'dataParallelSize',
  'maxModelLen',
  'maxNumSeqs',
  'maxBatchedTokens',
  'kvCacheTokens',
  'prefixCache',
  'draft',
] as const;

export interface EngineFlags extends ModelFlags, Pick<LoadOptions, (typeof ENGINE_NAMES)[number]> {
  /** A method of speculation. */
  speculative?: string;
  speculativeDepth?: number;
  /** Draft that many tokens in every step. */
  speculativeFixed?: boolean;
  /** Path of a Jinja file. */
  chatTemplate?: string;
}

export type SamplingFlags = Omit<SamplingOptions, 'signal' | 'speculative'>;

const SAMPLING_NAMES = [
  'temperature',
  'topP',
  'topK',
  'minP',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'logitBias',
  'seed',
  'maxTokens',
  'minTokens',
  'stop',
  'stopTokenIds',
  'ignoreEos',
  'logprobs',
  'skipSpecialTokens',
  'includeStopInOutput',
] as const;

export function addModelFlags(command: Command): Command {
  return command
    .optionsGroup('Model (a folder, or owner/name of a hub):')
    .option('--download', 'download what the cache lacks of it; without this no connection is made')
    .option('--revision <name>', 'a branch, a tag or a commit of it')
    .option('--source <hub>', 'huggingface | modelscope');
}

export function addEngineFlags(command: Command): Command {
  return addModelFlags(command)
    .optionsGroup('Engine:')
    .option('--device <name>', 'auto | cpu | cuda | ascend | ascend-twin (for tests)')
    .option('--kernels <path>', 'auto | reference | generic | avx2 | avx512 | avx512bf16 | amx; on cuda: auto | mma')
    .option('--compute <type>', 'type of activations: bfloat16 | float32 | int8 (Ascend)')
    .option('--deterministic', 'bits of an answer depend neither on its neighbours nor on chunking; slower on a GPU')
    .option('--kv-cache-dtype <type>', 'what the KV cache holds: auto | bfloat16 | fp8 (CUDA)')
    .option('--prefill-attention <type>', 'what attention of prompts multiplies in: auto | bfloat16 | fp8 (CUDA)')
    .option('--threads <n>', 'threads per rank; 0: the cores this process may use', number)
    .option('--tensor-parallel-size <n>', 'ranks that share the model: GPUs, or threads on the CPU', number)
    .option('--enable-expert-parallel', 'whole experts on each rank, instead of a part of every expert')
    .option('--data-parallel-size <n>', 'copies of the model, of that many ranks each, that share the requests', number)
    .option('--max-model-len <tokens>', 'longest sequence; 0: the context of the model', number)
    .option('--max-num-seqs <n>', 'sequences in one step', number)
    .option(
      '--max-batched-tokens <n>',
      'tokens in one step; longer prompts are read in chunks; 0: 8192 on cuda where memory allows, 512 elsewhere',
      number,
    )
    .option('--kv-cache-tokens <n>', 'capacity of the KV cache over all sequences; 0: chosen from free memory', number)
    .option('--draft <model>', 'an EAGLE3 draft of the model: tokens are drafted ahead, checked, and never change')
    .option('--speculative <method>', 'draft tokens ahead: auto | eagle3 | mtp | ngram | none')
    .option('--speculative-depth <n>', 'most tokens drafted at once', number)
    .option('--speculative-fixed', 'draft that many in every step, also where it does not pay')
    .option('--no-prefix-cache', 'compute every prompt whole, also where an earlier one began alike')
    .option('--chat-template <file>', "a Jinja template in place of the model folder's own");
}

export function addSamplingFlags(command: Command): Command {
  return command
    .optionsGroup('Sampling (default: generation_config.json of the model):')
    .option('--temperature <n>', '0 takes the most likely token', number)
    .option('--top-p <n>', 'keep the most likely tokens up to this much probability', number)
    .option('--top-k <n>', 'keep this many tokens; 0: all', number)
    .option('--min-p <n>', 'drop tokens less likely than this share of the best', number)
    .option('--repetition-penalty <n>', 'divide the logits of tokens seen in prompt or output', number)
    .option('--presence-penalty <n>', 'subtract once from tokens seen in the output', number)
    .option('--frequency-penalty <n>', 'subtract per time seen in the output', number)
    .option('--logit-bias <id=n>', 'add to the logit of a token id (may be repeated)', bias)
    .option('--seed <n>', 'same seed, same tokens', wholeNumber)
    .option('--max-tokens <n>', 'longest answer; default: to the end of the context', number)
    .option('--min-tokens <n>', 'no end before this many tokens', number)
    .option('--stop <text>', 'end where this text appears (may be repeated)', collect)
    .option('--stop-token-ids <ids>', 'end at these token ids, separated by commas', idList)
    .option('--ignore-eos', 'take no stop token from the model')
    .option('--logprobs <n>', 'report log-probabilities with this many alternatives (with --json)', number)
    .option('--no-skip-special-tokens', 'show special tokens')
    .option('--include-stop-in-output', 'keep a matched stop text');
}

export function engineOptions(flags: EngineFlags): LoadOptions {
  const { speculative: method, speculativeDepth: maxDepth, speculativeFixed: fixed } = flags;
  const options: LoadOptions = pick(flags, ENGINE_NAMES);
  if (method === 'none') options.speculative = false;
  // The library checks the name.
  else if (method !== undefined || maxDepth !== undefined || fixed !== undefined) {
    options.speculative = { method: method as 'auto', maxDepth, adaptive: fixed !== true };
  }
  return options;
}

export function samplingOptions(flags: SamplingFlags): SamplingOptions {
  return pick(flags, SAMPLING_NAMES);
}

// The named fields that were given.
function pick<T extends object, K extends keyof T>(from: T, names: readonly K[]): Pick<T, K> {
  const picked = {} as Pick<T, K>;
  for (const name of names) if (from[name] !== undefined) picked[name] = from[name];
  return picked;
}

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || Number.isNaN(value)) throw new InvalidArgumentError(`${JSON.stringify(text)} is not a number.`);
  return value;
}

/** For what the library does not check again. */
export function integer(text: string): number {
  const value = Number(wholeNumber(text));
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError(`${text} is out of range.`);
  return value;
}

function wholeNumber(text: string): bigint {
  if (!/^-?\d+$/.test(text)) throw new InvalidArgumentError(`${JSON.stringify(text)} is not a whole number.`);
  return BigInt(text);
}

function collect(text: string, before: string[] = []): string[] {
  return [...before, text];
}

function bias(text: string, before = new Map<number, number>()): Map<number, number> {
  const at = text.indexOf('=');
  if (at < 0) throw new InvalidArgumentError('Write it as id=bias, such as 42=-100.');
  return new Map(before).set(number(text.slice(0, at)), number(text.slice(at + 1)));
}

function idList(text: string): number[] {
  return text.split(',').map(number);
}
