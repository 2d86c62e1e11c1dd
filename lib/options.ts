/**
 * Checks of everything a caller passes, before any of it reaches the addon: unknown names are refused with the nearest
 * valid one, numbers by type and range. Sampling settings come from the request, then from generation_config.json, then
 * are neutral.
 */
import { createHash, webcrypto } from 'node:crypto';
import { CheckpointError, InvalidArgumentError } from './errors.js';
import type { Fields } from './folder.js';
import { MAX_LOGPROBS, type NativeEngineOptions, type NativeGenerateRequest } from './native.js';
import type { GenerateRequest, InspectOptions, LoadOptions, NodeOptions, SamplingOptions, StructuredOutput } from './types.js';

const CHAT_FIELDS = ['messages', 'tools', 'addGenerationPrompt', 'continueFinalMessage', 'chatTemplateKwargs'] as const;
const SAMPLING_FIELDS = [
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
  'separateReasoning',
  'allowedTokenIds',
  'badWords',
  'promptLogprobs',
  'thinkingTokenBudget',
  'structured',
  'priority',
  'deadlineMs',
  'speculative',
  'cacheSalt',
  'truncatePromptTokens',
  'signal',
] as const satisfies readonly (keyof SamplingOptions)[];
const LOAD_FIELDS = [
  'download',
  'revision',
  'source',
  'device',
  'kernels',
  'compute',
  'deterministic',
  'kvCacheDtype',
  'threads',
  'tensorParallelSize',
  'enableExpertParallel',
  'dataParallelSize',
  'node',
  'maxModelLen',
  'maxNumSeqs',
  'maxBatchedTokens',
  'kvCacheTokens',
  'memoryUtilization',
  'maxWaiting',
  'prefixCache',
  'mtp',
  'draft',
  'speculative',
  'chatTemplate',
  'onProgress',
  'signal',
] as const satisfies readonly (keyof LoadOptions)[];

const INT32_MAX = 2 ** 31 - 1;
/** As in csrc/engine/speculation/depth_control.h. */
const MAX_DRAFT_DEPTH = 15;
const MAX_TEXTS = 64;
const MAX_TEXT_CHARACTERS = 1024;

// ------------------------------------------------------------------------------------------------------ single fields

/** Refuses what is not an object and fields that are not in `known`. */
export function checkFields(what: string, value: unknown, known: readonly string[]): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new InvalidArgumentError(what, `${what}: expected an object, found ${kindOf(value)}`);
  }
  for (const name of Object.keys(value)) {
    if (known.includes(name)) continue;
    const nearest = nearestName(name, known);
    const hint = nearest === undefined ? `known: ${known.join(', ')}` : `did you mean ${nearest}?`;
    throw new InvalidArgumentError(name, `${what}: unknown option ${JSON.stringify(name)}`, hint);
  }
}

interface Range {
  min: number;
  max: number;
  integer?: boolean;
  /** The range is open at `min`. */
  above?: boolean;
}

export function checkNumber(name: string, value: unknown, range: Range): number {
  const { min, max, integer = false, above = false } = range;
  const inRange = typeof value === 'number' && (above ? value > min : value >= min) && value <= max;
  if (inRange && (!integer || Number.isInteger(value))) return value;
  const kind = integer ? 'an integer' : 'a number';
  const expected = above ? `${kind} above ${min}, at most ${max}` : `${kind} from ${min} to ${max}`;
  throw new InvalidArgumentError(name, `${name}: expected ${expected}, found ${show(value)}`);
}

function checkBoolean(name: string, value: unknown): boolean {
  if (typeof value === 'boolean') return value;
  throw new InvalidArgumentError(name, `${name}: expected true or false, found ${show(value)}`);
}

function checkOneOf<T extends string>(name: string, value: unknown, choices: readonly T[]): T {
  const choice = choices.find((known) => known === value);
  if (choice !== undefined) return choice;
  throw new InvalidArgumentError(name, `${name}: expected one of ${choices.join(', ')}, found ${show(value)}`);
}

export function checkSignal(signal: unknown): AbortSignal | undefined {
  if (signal === undefined || signal instanceof AbortSignal) return signal;
  throw new InvalidArgumentError('signal', `signal: expected an AbortSignal, found ${kindOf(signal)}`);
}

export function checkCallback(name: string, value: unknown): void {
  if (value === undefined || typeof value === 'function') return;
  throw new InvalidArgumentError(name, `${name}: expected a function, found ${kindOf(value)}`);
}

/** Token ids of a prompt, each in the vocabulary of the model. */
export function checkIds(name: string, ids: unknown, vocabSize: number): Int32Array {
  if (!(ids instanceof Int32Array) && !Array.isArray(ids)) {
    throw new InvalidArgumentError(name, `${name}: expected an array of token ids, found ${kindOf(ids)}`);
  }
  for (const [i, id] of (ids as readonly unknown[] | Int32Array).entries()) {
    if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < vocabSize) continue;
    throw new InvalidArgumentError(name, `${name}[${i}]: expected a token id from 0 to ${vocabSize - 1}, found ${show(id)}`);
  }
  return Int32Array.from(ids as readonly number[]);
}

/** A prompt must leave room in the context for at least `reserve` more tokens. */
export function checkPromptLength(name: string, ids: Int32Array, context: number, reserve: number): void {
  if (ids.length === 0) throw new InvalidArgumentError(name, `${name}: expected at least one token, found none`);
  if (ids.length + reserve <= context) return;
  const message = `${name}: ${ids.length} tokens, where the context of ${context} leaves room for ${context - reserve}`;
  throw new InvalidArgumentError(name, message, 'shorten it, or load the model with a larger maxModelLen if its config allows');
}

// ------------------------------------------------------------------------------------------------------------- loading

export function readLoadOptions(options: LoadOptions): NativeEngineOptions {
  checkFields('Model.load', options, LOAD_FIELDS);
  checkSignal(options.signal);
  checkCallback('onProgress', options.onProgress);
  const count = (name: keyof LoadOptions, fallback: number, min: number, max: number) =>
    checkNumber(name, options[name] ?? fallback, { min, max, integer: true });
  const kernels = ['auto', 'reference', 'generic', 'avx2', 'avx512', 'avx512bf16', 'amx', 'mma'] as const;
  return {
    device: checkOneOf('device', options.device ?? 'auto', ['auto', 'cpu', 'cuda', 'ascend', 'ascend-twin']),
    kernels: checkOneOf('kernels', options.kernels ?? 'auto', kernels),
    compute: checkOneOf('compute', options.compute ?? 'bfloat16', ['bfloat16', 'float32', 'int8']),
    deterministic: checkBoolean('deterministic', options.deterministic ?? false),
    kvCacheDtype: checkOneOf('kvCacheDtype', options.kvCacheDtype ?? 'auto', ['auto', 'bfloat16', 'fp8']),
    threads: count('threads', 0, 0, 1024),
    tensorParallelSize: count('tensorParallelSize', 1, 1, 64),
    enableExpertParallel: checkBoolean('enableExpertParallel', options.enableExpertParallel ?? false),
    dataParallelSize: count('dataParallelSize', 1, 1, 64),
    ...readNode(options),
    maxModelLen: count('maxModelLen', 0, 0, INT32_MAX),
    maxNumSeqs: count('maxNumSeqs', 32, 1, 4096),
    maxBatchedTokens: count('maxBatchedTokens', 512, 1, 1 << 20),
    kvCacheTokens: count('kvCacheTokens', 0, 0, INT32_MAX),
    memoryUtilization:
      options.memoryUtilization === undefined
        ? 0
        : checkNumber('memoryUtilization', options.memoryUtilization, { min: 0, max: 1, above: true }),
    maxWaiting: count('maxWaiting', 1024, 1, 1 << 20),
    prefixCache: checkBoolean('prefixCache', options.prefixCache ?? true),
    mtp: checkBoolean('mtp', options.mtp ?? false),
    ...readSpeculation(options),
  };
}

type NodeFields = Pick<
  NativeEngineOptions,
  | 'firstDevice'
  | 'nodeRank'
  | 'nodeCount'
  | 'nodeAddress'
  | 'nodePort'
  | 'nodeSecret'
  | 'nodeAllowNoSecret'
  | 'nodesOnThisMachine'
  | 'nodeJoinMs'
  | 'nodeSilenceMs'
>;

const NODE_FIELDS = [
  'rank',
  'count',
  'address',
  'port',
  'secret',
  'allowNoSecret',
  'localRank',
  'onThisMachine',
  'joinMs',
  'silenceMs',
] as const satisfies readonly (keyof NodeOptions)[];

function readNode({ node, tensorParallelSize = 1 }: LoadOptions): NodeFields {
  const given: Partial<NodeOptions> = node ?? { rank: 0, count: 1 };
  checkFields('node', given, NODE_FIELDS);
  const count = (name: keyof NodeOptions, fallback: number | undefined, min: number, max: number) =>
    checkNumber(`node.${name}`, given[name] ?? fallback, { min, max, integer: true });
  const nodeCount = count('count', undefined, 1, 64);
  const text = (name: 'address' | 'secret', fallback: string) => {
    const value: unknown = given[name] ?? fallback;
    if (typeof value === 'string' && !value.includes('\0')) return value;
    throw new InvalidArgumentError(`node.${name}`, `node.${name}: expected a text, found ${kindOf(value)}`);
  };
  const onThisMachine = count('onThisMachine', 1, 1, nodeCount);
  if (nodeCount > 1 && tensorParallelSize % nodeCount !== 0) {
    throw new InvalidArgumentError(
      'tensorParallelSize',
      `tensorParallelSize: expected a multiple of the ${nodeCount} nodes, found ${tensorParallelSize}`,
    );
  }
  return {
    firstDevice: (count('localRank', 0, 0, onThisMachine - 1) * tensorParallelSize) / nodeCount,
    nodeRank: count('rank', undefined, 0, nodeCount - 1),
    nodeCount,
    nodeAddress: text('address', '127.0.0.1'),
    nodePort: count('port', 29500, 1, 65535),
    nodeSecret: text('secret', ''),
    nodeAllowNoSecret: checkBoolean('node.allowNoSecret', given.allowNoSecret ?? false),
    nodesOnThisMachine: onThisMachine,
    nodeJoinMs: count('joinMs', 600_000, 0, 86_400_000),
    nodeSilenceMs: count('silenceMs', 30_000, 100, 3_600_000),
  };
}

/** How `inspect` is to cut the model. */
export function readRanks(options: InspectOptions): { tensorParallelSize: number; enableExpertParallel: boolean } {
  const { tensorParallelSize = 1, enableExpertParallel = false } = options;
  return {
    tensorParallelSize: checkNumber('tensorParallelSize', tensorParallelSize, { min: 1, max: 64, integer: true }),
    enableExpertParallel: checkBoolean('enableExpertParallel', enableExpertParallel),
  };
}

type SpeculationFields = Pick<NativeEngineOptions, 'speculation' | 'draft' | 'maxDraft' | 'adaptiveDepth'>;

function readSpeculation({ draft, speculative }: LoadOptions): SpeculationFields {
  if (draft !== undefined && (typeof draft !== 'string' || draft === '' || draft.includes('\0'))) {
    throw new InvalidArgumentError('draft', `draft: expected the path of a draft folder, found ${show(draft)}`);
  }
  const asked = speculative === undefined && draft !== undefined ? {} : speculative;
  if (asked === undefined || asked === false) {
    return { speculation: 'none', draft: draft ?? '', maxDraft: 0, adaptiveDepth: true };
  }
  checkFields('speculative', asked, ['method', 'maxDepth', 'adaptive']);
  const { method = 'auto', maxDepth, adaptive = true } = asked;
  return {
    speculation: checkOneOf('speculative.method', method, ['auto', 'eagle3', 'mtp', 'ngram']),
    draft: draft ?? '',
    maxDraft:
      maxDepth === undefined
        ? 0
        : checkNumber('speculative.maxDepth', maxDepth, { min: 1, max: MAX_DRAFT_DEPTH, integer: true }),
    adaptiveDepth: checkBoolean('speculative.adaptive', adaptive),
  };
}

// ------------------------------------------------------------------------------------------------------------ sampling

/** The settings that generation_config.json may give. */
export type SamplingDefaults = Pick<NativeGenerateRequest, keyof typeof SAMPLING_RANGES>;

const SAMPLING_RANGES = {
  temperature: { min: 0, max: 100 },
  topP: { min: 0, max: 1, above: true },
  topK: { min: 0, max: INT32_MAX, integer: true },
  minP: { min: 0, max: 1 },
  repetitionPenalty: { min: 0, max: 100, above: true },
} as const satisfies Record<string, Range>;

const NEUTRAL: SamplingDefaults = { temperature: 1, topP: 1, topK: 0, minP: 0, repetitionPenalty: 1 };

/** Sampling settings of generation_config.json; `do_sample: false` means temperature 0. */
export function readSamplingDefaults(path: string, config: Fields): SamplingDefaults {
  const defaults = { ...NEUTRAL };
  for (const name of Object.keys(SAMPLING_RANGES) as (keyof SamplingDefaults)[]) {
    const key = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    const value = config[key];
    if (value === undefined || value === null) continue;
    try {
      defaults[name] = checkNumber(key, value, SAMPLING_RANGES[name]);
    } catch (cause) {
      throw new CheckpointError(`${path}: ${(cause as Error).message}`, '', { cause });
    }
  }
  if (config.do_sample === false) defaults.temperature = 0;
  return defaults;
}

export interface ModelLimits {
  vocabSize: number;
  defaults: SamplingDefaults;
  /** Ids that end an answer of this model. */
  stopIds: readonly number[];
}

/** What of a request only the tokenizer can turn into ids. */
type TextFields = 'prompt' | 'badWords' | 'thinkingOpen' | 'thinkingBeginIds' | 'thinkingEndIds';

/** A request as the engine and the text pipeline take it; the prompt and other texts are still to come. */
export interface ReadRequest {
  native: Omit<NativeGenerateRequest, TextFields>;
  badWords: string[];
  structured: StructuredOutput | undefined;
  truncatePromptTokens: number | undefined;
  stops: string[];
  skipSpecialTokens: boolean;
  includeStopInOutput: boolean;
  separateReasoning: boolean;
  signal: AbortSignal | undefined;
}

export function readRequest(request: GenerateRequest, limits: ModelLimits): ReadRequest {
  checkFields('generate', request, ['prompt', ...CHAT_FIELDS, ...SAMPLING_FIELDS]);
  checkOnePrompt(request);
  const { vocabSize, defaults } = limits;
  const setting = (name: keyof SamplingDefaults) => checkNumber(name, request[name] ?? defaults[name], SAMPLING_RANGES[name]);
  const penalty = (name: 'presencePenalty' | 'frequencyPenalty') => checkNumber(name, request[name] ?? 0, { min: -2, max: 2 });
  type Count = 'maxTokens' | 'minTokens' | 'logprobs' | 'promptLogprobs' | 'thinkingTokenBudget' | 'deadlineMs' | 'priority';
  const count = (name: Count, fallback: number, min: number, max: number) =>
    request[name] === undefined ? fallback : checkNumber(name, request[name], { min, max, integer: true });
  const own = checkIds('stopTokenIds', request.stopTokenIds ?? [], vocabSize);
  const fromModel = checkBoolean('ignoreEos', request.ignoreEos ?? false) ? [] : limits.stopIds;
  const maxTokens = count('maxTokens', -1, 1, INT32_MAX);
  const minTokens = count('minTokens', 0, 0, INT32_MAX);
  if (maxTokens >= 0 && minTokens > maxTokens) {
    throw new InvalidArgumentError('minTokens', `minTokens: expected at most maxTokens (${maxTokens}), found ${minTokens}`);
  }
  return {
    native: {
      temperature: setting('temperature'),
      topP: setting('topP'),
      topK: setting('topK'),
      minP: setting('minP'),
      repetitionPenalty: setting('repetitionPenalty'),
      presencePenalty: penalty('presencePenalty'),
      frequencyPenalty: penalty('frequencyPenalty'),
      seed: readSeed(request.seed),
      maxTokens,
      minTokens,
      stopIds: Int32Array.from(new Set([...own, ...fromModel.filter((id) => id < vocabSize)])),
      logprobs: count('logprobs', -1, 0, MAX_LOGPROBS),
      promptLogprobs: count('promptLogprobs', -1, 0, MAX_LOGPROBS),
      allowedIds: readAllowedIds(request.allowedTokenIds, vocabSize),
      thinkingBudget: count('thinkingTokenBudget', -1, 0, INT32_MAX),
      masked: request.structured !== undefined,
      priority: count('priority', 0, -INT32_MAX - 1, INT32_MAX),
      deadlineMs: count('deadlineMs', -1, 0, INT32_MAX),
      maxDraft: readMaxDraft(request.speculative),
      cacheSalt: readCacheSalt(request.cacheSalt),
      ...readLogitBias(request.logitBias, vocabSize),
    },
    badWords: readTexts('badWords', request.badWords),
    structured: readStructured(request.structured),
    truncatePromptTokens:
      request.truncatePromptTokens === undefined
        ? undefined
        : checkNumber('truncatePromptTokens', request.truncatePromptTokens, { min: 1, max: INT32_MAX, integer: true }),
    stops: readTexts('stop', request.stop),
    skipSpecialTokens: checkBoolean('skipSpecialTokens', request.skipSpecialTokens ?? true),
    includeStopInOutput: checkBoolean('includeStopInOutput', request.includeStopInOutput ?? false),
    separateReasoning: checkBoolean('separateReasoning', request.separateReasoning ?? true),
    signal: checkSignal(request.signal),
  };
}

function checkOnePrompt(request: GenerateRequest): void {
  if ((request.prompt === undefined) === (request.messages === undefined)) {
    const found = request.prompt === undefined ? 'neither' : 'both';
    throw new InvalidArgumentError('prompt', `generate: expected exactly one of prompt and messages, found ${found}`);
  }
  if (request.prompt === undefined) return;
  const fields = request as unknown as Fields;
  for (const name of CHAT_FIELDS) {
    if (fields[name] === undefined) continue;
    throw new InvalidArgumentError(name, `generate: ${name} goes with messages, not with prompt`);
  }
}

function readSeed(seed: unknown): bigint {
  if (seed === undefined) {
    const [high = 0, low = 0] = webcrypto.getRandomValues(new Uint32Array(2));
    return (BigInt(high & 0x1fffff) << 32n) | BigInt(low);
  }
  if (typeof seed === 'bigint' && seed >= 0n && seed < 1n << 64n) return seed;
  if (typeof seed === 'number' && Number.isSafeInteger(seed) && seed >= 0) return BigInt(seed);
  const expected = 'an integer from 0 to 2^53 - 1, or a bigint below 2^64';
  throw new InvalidArgumentError('seed', `seed: expected ${expected}, found ${show(seed)}`);
}

/** -1: as many as the model was loaded for. */
function readMaxDraft(speculative: SamplingOptions['speculative']): number {
  if (speculative === undefined) return -1;
  if (speculative === false) return 0;
  checkFields('speculative', speculative, ['maxDepth']);
  const { maxDepth } = speculative;
  if (maxDepth === undefined) return -1;
  return checkNumber('speculative.maxDepth', maxDepth, { min: 0, max: MAX_DRAFT_DEPTH, integer: true });
}

function readAllowedIds(ids: SamplingOptions['allowedTokenIds'], vocabSize: number): Int32Array {
  const allowed = checkIds('allowedTokenIds', ids ?? [], vocabSize);
  if (ids === undefined || allowed.length > 0) return allowed;
  throw new InvalidArgumentError('allowedTokenIds', 'allowedTokenIds: expected at least one token id, found none');
}

/** 128 bits of a hash: the salt itself stays on this side. No salt is the salt of zeros. */
function readCacheSalt(salt: unknown): Int32Array {
  if (salt === undefined) return new Int32Array(4);
  if (typeof salt === 'string' && salt.length > 0) {
    return new Int32Array(new Uint8Array(createHash('sha256').update(salt).digest().subarray(0, 16)).buffer);
  }
  const found = salt === '' ? 'an empty one' : kindOf(salt);
  throw new InvalidArgumentError('cacheSalt', `cacheSalt: expected a string of at least one character, found ${found}`);
}

const STRUCTURED_FORMS = ['json', 'jsonObject', 'regex', 'choice', 'grammar', 'toolCalls'] as const;

/** Its form only; what stands in it is for the grammar compiler to judge. */
function readStructured(structured: unknown): StructuredOutput | undefined {
  if (structured === undefined) return undefined;
  checkFields('structured', structured, [...STRUCTURED_FORMS, 'parallel']);
  const given = Object.keys(structured as object).filter((field) => field !== 'parallel');
  if (given.length === 1) return structured as StructuredOutput;
  const message = `structured: expected exactly one of ${STRUCTURED_FORMS.join(', ')}, found ${given.join(', ') || 'none'}`;
  throw new InvalidArgumentError('structured', message);
}

function readTexts(name: 'stop' | 'badWords', value: unknown): string[] {
  if (value === undefined) return [];
  const texts: unknown[] = Array.isArray(value) ? value : [value];
  if (texts.length > MAX_TEXTS) {
    throw new InvalidArgumentError(name, `${name}: expected at most ${MAX_TEXTS} strings, found ${texts.length}`);
  }
  return texts.map((text) => {
    if (typeof text === 'string' && text.length > 0 && text.length <= MAX_TEXT_CHARACTERS) return text;
    const found = typeof text === 'string' ? `one of ${text.length}` : kindOf(text);
    throw new InvalidArgumentError(name, `${name}: expected strings of 1 to ${MAX_TEXT_CHARACTERS} characters, found ${found}`);
  });
}

function readLogitBias(bias: unknown, vocabSize: number): Pick<NativeGenerateRequest, 'logitBiasIds' | 'logitBiasValues'> {
  if (bias === undefined) return { logitBiasIds: new Int32Array(0), logitBiasValues: new Float32Array(0) };
  if (typeof bias !== 'object' || bias === null || Array.isArray(bias)) {
    throw new InvalidArgumentError(
      'logitBias',
      `logitBias: expected an object or Map from id to number, found ${kindOf(bias)}`,
    );
  }
  const entries: [unknown, unknown][] =
    bias instanceof Map
      ? [...bias]
      : Object.entries(bias).map(([key, value]) => [/^\d+$/.test(key) ? Number(key) : key, value]);
  return {
    logitBiasIds: checkIds(
      'logitBias',
      entries.map(([id]) => id),
      vocabSize,
    ),
    logitBiasValues: Float32Array.from(
      entries.map(([id, value]) => checkNumber(`logitBias[${String(id)}]`, value, { min: -100, max: 100 })),
    ),
  };
}

// --------------------------------------------------------------------------------------------------------------- words

function nearestName(name: string, known: readonly string[]): string | undefined {
  // max_tokens is maxTokens written otherwise
  const fold = (text: string) => text.replace(/[_-]/g, '').toLowerCase();
  const ranked = known.map((candidate) => ({ candidate, distance: editDistance(fold(name), fold(candidate)) }));
  ranked.sort((a, b) => a.distance - b.distance);
  const best = ranked[0];
  return best !== undefined && best.distance <= Math.max(1, best.candidate.length / 3) ? best.candidate : undefined;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= Math.min(a.length, 64); i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substituted = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, substituted));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (value === undefined) return 'nothing';
  return Array.isArray(value) ? 'an array' : `a ${typeof value}`;
}

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 40));
  return typeof value === 'number' || typeof value === 'bigint' ? String(value) : kindOf(value);
}
