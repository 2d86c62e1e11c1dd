/**
 * The types of the public API: what a caller passes in and gets back. Checked in load_options.ts, request_options.ts and
 * chat/messages.ts, which reject unknown fields by name; every optional field may also be passed as `undefined`.
 */
import type { ModelSource } from './hub/index.js';
import type { JsonValue } from './json.js';

// ---------------------------------------------------------------------------------------------------------- loading

export interface LoadOptions extends ModelSource {
  /**
   * `auto` picks CUDA, then Ascend, then the CPU, and says why in `info.device.reason`; a named one that is missing throws.
   * `ascend-twin` runs the Ascend kernels on the CPU, for tests; `auto` never picks it.
   */
  device?: 'auto' | 'cpu' | 'cuda' | 'ascend' | 'ascend-twin' | undefined;
  /**
   * Which of a device's kernels. Default `auto`: the fastest this machine has. `mma` is of CUDA: many rows as on cards before
   * Hopper, on any card; the others are instruction paths of the CPU.
   */
  kernels?: 'auto' | 'reference' | 'generic' | 'avx2' | 'avx512' | 'avx512bf16' | 'amx' | 'mma' | undefined;
  /** Type of activations. `float32` is for comparison with goldens; `int8` (W8A8) is for Ascend alone. Default `bfloat16`. */
  compute?: 'bfloat16' | 'float32' | 'int8' | undefined;
  /**
   * An answer's bits depend neither on the other requests of a step nor on how prompts are cut, at the price of slower kernels
   * for many rows on a GPU; the CPU is always so. Default false.
   */
  deterministic?: boolean | undefined;
  /** What the KV cache holds: `fp8` (E4M3, CUDA alone) halves it. Default `auto`: the type of activations. */
  kvCacheDtype?: 'auto' | 'bfloat16' | 'fp8' | undefined;
  /**
   * What attention of prompts multiplies in. `fp8` (CUDA of compute capability 9.0, heads of 128 dims): values and attention
   * weights are rounded to E4M3 for sequences with more than 16 rows in a step, with an FP8 cache queries, too; decoding is as
   * ever. Faster where prompts are long, and less exact (docs/serving.md). Default `auto`: the compute type's own.
   */
  prefillAttention?: 'auto' | 'bfloat16' | 'fp8' | undefined;
  /** Threads per rank; 0, the default, takes the cores the process may use. */
  threads?: number | undefined;
  /** Ranks that share the model: GPUs of this machine, or threads on the CPU. Default 1. */
  tensorParallelSize?: number | undefined;
  /** Puts whole experts on each rank instead of a part of every expert. Default false. */
  enableExpertParallel?: boolean | undefined;
  /**
   * Copies of the model, of `tensorParallelSize` ranks each, that share the requests: each goes to the copy that holds most of
   * its prompt in its prefix cache, unless that one is much busier. Default 1.
   */
  dataParallelSize?: number | undefined;
  /** Spreads the ranks over several processes, on one machine or many: this one's place among them. Default: it is alone. */
  node?: NodeOptions | undefined;
  /** Tokens a sequence may hold; 0, the default, takes the model's context. */
  maxModelLen?: number | undefined;
  /** Sequences in one step of one copy. Default 32. */
  maxNumSeqs?: number | undefined;
  /**
   * Token budget of one step, at most 65,536: prefill is cut into chunks of this. 0, the default, takes 8,192 on CUDA, less where
   * memory is tight, and 512 elsewhere; never less than `maxNumSeqs`, nor more than so many sequences can hold.
   */
  maxBatchedTokens?: number | undefined;
  /** KV cache capacity over all sequences; 0, the default, is chosen from the context and free memory. */
  kvCacheTokens?: number | undefined;
  /** Share of the free memory that weights and KV cache may take, in (0, 1]. Default: 1 GiB of KV cache on a CPU, 0.9 elsewhere. */
  memoryUtilization?: number | undefined;
  /** Requests that may wait beyond those running before `generate` ends with a BusyError. Default 1024. */
  maxWaiting?: number | undefined;
  /** Finds pages of earlier prompts again for prompts that begin alike. Default true. */
  prefixCache?: boolean | undefined;
  /** Loads the MTP layers, so that `logits(ids, { mtp: true })` works. Default false. */
  mtp?: boolean | undefined;
  /** Folder or id of an EAGLE3 draft of this model: tokens are drafted ahead and checked several in one step. */
  draft?: string | undefined;
  /**
   * How tokens are drafted ahead; false: not at all. Default: by `draft` where that is given, else not at all. It changes how
   * fast tokens come, never which.
   */
  speculative?: SpeculativeOptions | false | undefined;
  /** Jinja text used in place of the folder's own chat template. */
  chatTemplate?: string | undefined;
  /** Called while the model is downloaded and while weights are read, at most about 20 times a second and once at the end. */
  onProgress?: ((progress: LoadProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * One of several processes that run a model together, each with `tensorParallelSize / count` of its ranks. The one of rank 0 is
 * loaded with `Model.load` and takes all requests; the others call `follow` with the same model and options.
 */
export interface NodeOptions {
  rank: number;
  count: number;
  /** Of rank 0, which listens there and nowhere else. Default 127.0.0.1. */
  address?: string | undefined;
  /** Default 29500. */
  port?: number | undefined;
  /** The same on all; who does not know it is not let in. Needed unless the address is a loopback one. */
  secret?: string | undefined;
  /** Takes any address without a secret: for networks whose every machine is trusted. Default false. */
  allowNoSecret?: boolean | undefined;
  /** This process among those of its machine: which accelerators it takes. Default 0. */
  localRank?: number | undefined;
  /** Processes of this machine, which share its cores and memory. Default 1. */
  onThisMachine?: number | undefined;
  /** How long to wait for the others. Default 10 minutes. */
  joinMs?: number | undefined;
  /** One that is silent for longer is lost, and the model with it. Default 30 s. */
  silenceMs?: number | undefined;
}

export interface FollowOptions extends LoadOptions {
  node: NodeOptions;
  /** Called once, when all nodes have loaded and the first step went well. */
  onReady?: (() => void) | undefined;
}

export interface LoadProgress {
  /** While the model is downloaded; absent while weights are read. */
  stage?: 'download';
  bytesDone: number;
  bytesTotal: number;
}

export interface ModelInfo {
  /** The folder it was loaded from; of a model named by its id, the one in the cache. */
  path: string;
  architecture: string;
  /** Tokens a sequence may hold: the model's context, or `maxModelLen` if that is less. */
  context: number;
  vocabSize: number;
  weightFormat: string;
  /** What runs, where options left it to `auto`, too; of `inspect`, which loads no weights, texts are empty. */
  device: {
    name: string;
    description: string;
    reason: string;
    kernels: string;
    /** What products multiply in. */
    compute: string;
    /** What the KV cache holds: `float32`, `bfloat16` or `fp8`. */
    kvCacheDtype: string;
    /** What attention of prompts multiplies in: `float32`, `bfloat16` or `fp8`, which only heads of 128 dims have. */
    prefillAttention: string;
    threads: number;
  };
  shape: {
    hiddenSize: number;
    layers: number;
    denseLayers: number;
    mtpLayers: number;
    heads: number;
    kvHeads: number;
    headDim: number;
    experts: number;
    activeExperts: number;
    sharedExperts: number;
  };
  parameters: { total: number; active: number; parts: { part: string; parameters: number }[] };
  memory: { checkpointBytes: number; weightBytes: number; kvBytes: number; kvBytesPerToken: number; workspaceBytes: number };
  /** `maxNumSeqs` and `kvCacheTokens`, like the bytes above, are sums over all copies. */
  limits: {
    maxNumSeqs: number;
    /** What was asked for or chosen; of copies that chose differently, the least. */
    maxBatchedTokens: number;
    kvCacheTokens: number;
    tensorParallelSize: number;
    dataParallelSize: number;
  };
  /** Of `inspect` with `tensorParallelSize`: the bytes that each rank keeps; empty for a loaded model. */
  ranks: { weightBytes: number; kvBytesPerToken: number }[];
  /** Who drafts tokens ahead and how many at most; null when nobody does. */
  speculation: { method: SpeculationMethod; maxDepth: number } | null;
  /** Where the chat template came from: the option, a file of the folder, or the one built in. */
  chatTemplate: ChatTemplateSource;
}

/** How a model that is only inspected would be cut. */
export interface InspectOptions extends ModelSource {
  tensorParallelSize?: number | undefined;
  enableExpertParallel?: boolean | undefined;
}

export interface SpeculativeOptions {
  /** Default `auto`: the draft folder, or the checkpoint's MTP layer, or `ngram`, which needs no weights. */
  method?: SpeculationMethod | 'auto' | undefined;
  /** Most tokens drafted at once, 1 to 15. Default: what suits the method. */
  maxDepth?: number | undefined;
  /** Drafts fewer tokens, down to none, where more would not pay. Default true. */
  adaptive?: boolean | undefined;
}

/** An EAGLE3 draft folder, the checkpoint's own MTP layer, or looking up what followed the same words earlier in the text. */
export type SpeculationMethod = 'eagle3' | 'mtp' | 'ngram';

export type ChatTemplateSource = 'option' | 'chat_template.jinja' | 'tokenizer_config.json' | 'built-in';

export interface ModelStats {
  freePages: number;
  heldPages: number;
  totalPages: number;
  /** Pages nobody uses whose content a later prompt may find again. */
  cachedPages: number;
  running: number;
  waiting: number;
  steps: number;
  prefillTokens: number;
  decodeTokens: number;
  preemptions: number;
  /** Prompt tokens looked up in the prefix cache, and those found there. */
  prefixQueriedTokens: number;
  prefixHitTokens: number;
  /** Chains of drafts that steps checked, the tokens in them, and those that came true: steps saved. */
  draftChecks: number;
  draftedTokens: number;
  acceptedTokens: number;
  /** Of accepted drafts: how many by place in their chain. */
  acceptedPerPosition: number[];
  /**
   * Where the model was loaded with speculation, of steps that read no prompts: those that checked no drafts, those that did,
   * and the passes of the drafter behind them, with the milliseconds all of each kind took.
   */
  plainSteps: number;
  verifySteps: number;
  draftPasses: number;
  plainMs: number;
  verifyMs: number;
  draftMs: number;
}

export interface DeviceStatus {
  device: string;
  available: boolean;
  /** What it is, or why it is not available. */
  detail: string;
}

// --------------------------------------------------------------------------------------------------------- messages

/** The message format of chat completions: field names are those of the wire. */
export interface Message {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content?: string | TextPart[] | null | undefined;
  /** Assistant only: its thinking. `reasoning` is read as the same thing. */
  reasoning_content?: string | null | undefined;
  reasoning?: string | null | undefined;
  /** Assistant only. */
  tool_calls?: ToolCall[] | null | undefined;
  /** Tool only: which call this answers. */
  tool_call_id?: string | undefined;
  name?: string | undefined;
}

export interface TextPart {
  type: 'text';
  text: string;
}

/** `arguments` as JSON text reaches the template unchanged; as an object it is written by the template's `tojson`. */
export interface FunctionCall {
  name: string;
  arguments: string | JsonObject;
}

export type ToolCall = { id?: string | undefined; type?: 'function' | undefined; function: FunctionCall } | FunctionCall;

export interface Tool {
  type: 'function';
  function: { name: string; description?: string | undefined; parameters?: JsonObject | undefined };
}

/** A JSON object: plain, or a Map from `parseJson`, which keeps number text and key order. */
export type JsonObject = { [key: string]: unknown } | Map<string, JsonValue>;

export interface ChatOptions {
  /** Tool definitions: objects, or JSON text of an array, of which number text and key order are kept. */
  tools?: readonly (Tool | JsonObject)[] | string | undefined;
  /** Ends the prompt with the start of an assistant turn. Default true. */
  addGenerationPrompt?: boolean | undefined;
  /** Leaves the last assistant message open, so that the model continues it. Excludes `addGenerationPrompt: true`. */
  continueFinalMessage?: boolean | undefined;
  /** Further variables for the template, such as `{ enable_thinking: false }`. */
  chatTemplateKwargs?: Record<string, unknown> | undefined;
}

// ------------------------------------------------------------------------------------------------------- generation

export interface SamplingOptions {
  /** 0 takes the most likely token. Range 0 to 100. */
  temperature?: number | undefined;
  /** Keeps the most likely tokens up to this much probability. Range (0, 1]. */
  topP?: number | undefined;
  /** Keeps this many tokens; 0 keeps all. */
  topK?: number | undefined;
  /** Drops tokens less likely than this share of the best. Range 0 to 1. */
  minP?: number | undefined;
  /** Divides the logits of tokens seen in prompt or output; 1 is none. Range (0, 100]. */
  repetitionPenalty?: number | undefined;
  /** Subtracted once from tokens seen in the output. Range -2 to 2. */
  presencePenalty?: number | undefined;
  /** Subtracted per time seen in the output. Range -2 to 2. */
  frequencyPenalty?: number | undefined;
  /** Added to the logits of these token ids. Range -100 to 100 each. */
  logitBias?: Record<number, number> | Map<number, number> | undefined;
  /** Same seed, same request: same tokens, whatever else runs. Random when absent, and reported in the result. */
  seed?: number | bigint | undefined;
  /** Default: to the end of the context. */
  maxTokens?: number | undefined;
  /** No stop token or stop string ends the output before this many tokens. */
  minTokens?: number | undefined;
  /** Ends the output where one of these appears; it is not part of the text unless `includeStopInOutput`. */
  stop?: string | readonly string[] | undefined;
  stopTokenIds?: readonly number[] | undefined;
  /** Takes no stop token from the model folder; `stopTokenIds` still count. */
  ignoreEos?: boolean | undefined;
  /** Reports log-probabilities, with this many alternatives per token. Range 0 to 20. */
  logprobs?: number | undefined;
  /** Leaves special tokens out of the text. Default true. */
  skipSpecialTokens?: boolean | undefined;
  /** Keeps a matched stop string in the text. Default false. */
  includeStopInOutput?: boolean | undefined;
  /** Tells reasoning apart from the answer. False leaves the text as it was generated, tags included. Default true. */
  separateReasoning?: boolean | undefined;
  /** Only these ids can be sampled. Stop tokens too must be listed, or the output ends at `maxTokens`. */
  allowedTokenIds?: readonly number[] | undefined;
  /** Texts that must not be generated. */
  badWords?: readonly string[] | undefined;
  /** Reports log-probabilities of the prompt's tokens, with this many alternatives each. Range 0 to 20. */
  promptLogprobs?: number | undefined;
  /** At most this many tokens of reasoning; then `</think>` is forced. */
  thinkingTokenBudget?: number | undefined;
  /** A form that the answer after the reasoning must have. */
  structured?: StructuredOutput | undefined;
  /** Lower runs first; ties in order of arrival. Range -2^31 to 2^31 - 1, default 0. */
  priority?: number | undefined;
  /** Milliseconds from now at which the output ends, finishReason `deadline`. */
  deadlineMs?: number | undefined;
  /**
   * Tokens drafted ahead at once, where the model was loaded with speculation: 0 to 15, default what the model was loaded for;
   * false is 0. It changes how fast tokens come, never which.
   */
  speculative?: { maxDepth?: number | undefined } | false | undefined;
  /** Prompts share cached pages only with prompts of the same salt. */
  cacheSalt?: string | undefined;
  /** Keeps this many tokens of the prompt's end. */
  truncatePromptTokens?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** Exactly one of these. `grammar` is EBNF in GBNF's notation with a rule `root`. */
export type StructuredOutput =
  | { json: JsonObject | string }
  | { jsonObject: true }
  | { regex: string }
  | { choice: readonly string[] }
  | { grammar: string }
  /** Calls of these tools in the family's `<tool_call>` format, one or, with `parallel` (default true), several. */
  | { toolCalls: readonly { name: string; parameters?: JsonObject | string | undefined }[]; parallel?: boolean | undefined };

export type Prompt = string | readonly number[] | Int32Array;

export interface PromptRequest extends SamplingOptions {
  /** Text, in which special tokens are recognised, or token ids. */
  prompt: Prompt;
  messages?: undefined;
}

export interface ChatRequest extends SamplingOptions, ChatOptions {
  /** A conversation, or its JSON text. Special tokens inside messages are plain text: no message can forge a turn. */
  messages: readonly Message[] | string;
  prompt?: undefined;
}

export type GenerateRequest = PromptRequest | ChatRequest;

export interface TokenLogprob {
  id: number;
  /** The token's bytes; a character may be split over several tokens. */
  bytes: Uint8Array;
  logprob: number;
  /** Most likely first. */
  top: { id: number; bytes: Uint8Array; logprob: number }[];
}

/** What arrived since the last chunk; a slow reader gets fewer, larger chunks. Any one of the fields may be empty. */
export interface Chunk {
  text: string;
  reasoning: string;
  tokens: number[];
  /** One per token, when asked for. */
  logprobs?: TokenLogprob[];
}

export interface GenerateResult {
  text: string;
  /** What stood between `<think>` and `</think>`; empty when the model did not think. */
  reasoning: string;
  tokens: number[];
  /** `abort` only after the reader left its loop early; an aborted signal rejects instead. */
  finishReason: 'stop' | 'length' | 'abort' | 'deadline';
  /** The stop string or token id that ended the output; null for other ends. */
  stopReason: string | number | null;
  seed: bigint;
  usage: {
    promptTokens: number;
    completionTokens: number;
    totalTokens: number;
    reasoningTokens: number;
    cachedTokens: number;
    /** Tokens guessed ahead and checked by the model, and those of them that it would have sampled: steps saved. */
    draftedTokens: number;
    acceptedTokens: number;
  };
  timings: { queueMs: number; ttftMs: number; totalMs: number; tokensPerSecond: number };
  logprobs?: TokenLogprob[];
  /** One per prompt token; null for the first, which nothing comes before. */
  promptLogprobs?: (TokenLogprob | null)[];
}

/** What is known once a prompt was computed. */
export interface GenerationStart {
  promptTokens: Int32Array;
  /** Of these, how many the prefix cache held. */
  cachedTokens: number;
  /** From submission to the first step that took part of the prompt. */
  queueMs: number;
}

export interface BatchOptions {
  /** Called as requests finish. */
  onProgress?: ((progress: BatchProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface BatchProgress {
  done: number;
  total: number;
  completionTokens: number;
}

export interface LogitsOptions {
  /** Logits of the first MTP layer instead: row t predicts token t + 2. Needs `mtp: true` at load. */
  mtp?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

export interface BenchOptions {
  onLine?: ((line: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}
