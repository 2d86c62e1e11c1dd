/**
 * What a request may ask, checked before any of it reaches the addon. Sampling settings come from the request, then from
 * generation_config.json, then are neutral.
 */
import { createHash, webcrypto } from 'node:crypto';
import {
  checkBoolean,
  checkFields,
  checkIds,
  checkNumber,
  checkSignal,
  INT32_MAX,
  kindOf,
  MAX_DRAFT_DEPTH,
  type Range,
  show,
} from './checks.js';
import { CheckpointError, InvalidArgumentError } from './errors.js';
import type { Fields } from './folder.js';
import { MAX_LOGPROBS, type NativeGenerateRequest } from './native.js';
import type { GenerateRequest, SamplingOptions, StructuredOutput } from './types.js';

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

const MAX_TEXTS = 64;
const MAX_TEXT_CHARACTERS = 1024;

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
