/** What the API answers with, as types. Fields beyond OpenAI's own are vLLM's. */

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  completion_tokens_details: {
    reasoning_tokens: number;
    /** Drafted tokens that came true, and that did not; only where some were drafted. */
    accepted_prediction_tokens?: number;
    rejected_prediction_tokens?: number;
  };
}

export interface TopLogprob {
  token: string;
  logprob: number;
  bytes: number[];
}

export interface ChatLogprobs {
  content: (TopLogprob & { top_logprobs: TopLogprob[] })[];
  refusal: null;
}

export interface CompletionLogprobs {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[] | null;
  text_offset: number[];
}

/** Per prompt token, the token itself and its alternatives by id; null for the first. */
export type PromptLogprobs = (Record<string, { logprob: number; rank: number | null; decoded_token: string }> | null)[];

export type FinishReason = 'stop' | 'length' | 'tool_calls' | 'abort';

export interface WireToolCall {
  id: string;
  type: 'function';
  function: { name: string; arguments: string };
}

export interface ChatMessageOut {
  role: 'assistant';
  content: string | null;
  refusal: null;
  reasoning?: string;
  reasoning_content?: string;
  tool_calls?: WireToolCall[];
}

export interface ChatChoice {
  index: number;
  message: ChatMessageOut;
  logprobs: ChatLogprobs | null;
  finish_reason: FinishReason;
  stop_reason: string | number | null;
  token_ids?: number[];
}

export interface ChatCompletion {
  id: string;
  object: 'chat.completion';
  created: number;
  model: string;
  choices: ChatChoice[];
  usage: Usage;
  system_fingerprint: string;
  service_tier: null;
  prompt_logprobs?: PromptLogprobs | null;
  prompt_token_ids?: number[];
}

export interface ToolCallDelta {
  index: number;
  id?: string;
  type?: 'function';
  function: { name?: string; arguments?: string };
}

export interface ChatDelta {
  role?: 'assistant';
  content?: string;
  reasoning?: string;
  reasoning_content?: string;
  tool_calls?: ToolCallDelta[];
}

export interface ChatChunkChoice {
  index: number;
  delta: ChatDelta;
  logprobs: ChatLogprobs | null;
  finish_reason: FinishReason | null;
  stop_reason?: string | number | null;
  token_ids?: number[];
}

export interface ChatCompletionChunk {
  id: string;
  object: 'chat.completion.chunk';
  created: number;
  model: string;
  choices: ChatChunkChoice[];
  system_fingerprint: string;
  usage?: Usage | null;
  prompt_token_ids?: number[];
}

export interface CompletionChoice {
  index: number;
  text: string;
  logprobs: CompletionLogprobs | null;
  finish_reason: FinishReason | null;
  stop_reason: string | number | null;
  prompt_logprobs?: PromptLogprobs | null;
  prompt_token_ids?: number[];
  token_ids?: number[];
}

/** Of `/v1/completions`, whole or streamed: both have one shape. */
export interface Completion {
  id: string;
  object: 'text_completion';
  created: number;
  model: string;
  choices: CompletionChoice[];
  system_fingerprint: string;
  usage?: Usage | null;
}

export interface ModelCard {
  id: string;
  object: 'model';
  created: number;
  owned_by: string;
  root: string;
  parent: null;
  max_model_len: number;
  permission: [];
  /** Put before conversations that bring no system message; null: none is. */
  default_system_prompt: string | null;
  disclaimer: string | null;
}

export interface ModelList {
  object: 'list';
  data: ModelCard[];
}

export interface Tokens {
  count: number;
  max_model_len: number;
  tokens: number[];
  token_strs: string[] | null;
}
