/** What /v1/responses answers with, as types. */
import type { TopLogprob } from './wire.js';

export type OutputLogprob = TopLogprob & { top_logprobs: TopLogprob[] };

export interface OutputText {
  type: 'output_text';
  text: string;
  annotations: [];
  logprobs: OutputLogprob[];
}

export interface ReasoningText {
  type: 'reasoning_text';
  text: string;
}

type Status = 'in_progress' | 'completed' | 'incomplete';

export type OutputItem =
  | { type: 'reasoning'; id: string; status: Status; summary: []; content: ReasoningText[] }
  | { type: 'message'; id: string; status: Status; role: 'assistant'; content: OutputText[] }
  | { type: 'function_call'; id: string; status: Status; call_id: string; name: string; arguments: string };

export interface ResponseObject {
  id: string;
  object: 'response';
  created_at: number;
  completed_at: number | null;
  status: Status;
  background: false;
  error: null;
  incomplete_details: { reason: 'max_output_tokens' } | null;
  instructions: string | null;
  max_output_tokens: number | null;
  metadata: Record<string, unknown>;
  model: string;
  output: OutputItem[];
  parallel_tool_calls: boolean;
  previous_response_id: null;
  reasoning: { effort: string | null; summary: null };
  service_tier: null;
  store: false;
  temperature: number | null;
  text: { format: object };
  tool_choice: string | object;
  tools: object[];
  top_logprobs: number;
  top_p: number | null;
  truncation: 'disabled';
  usage: {
    input_tokens: number;
    input_tokens_details: { cached_tokens: number };
    output_tokens: number;
    output_tokens_details: { reasoning_tokens: number };
    total_tokens: number;
  } | null;
  user: string | null;
}

interface At {
  item_id: string;
  output_index: number;
}

export type OutputEvent =
  | { type: 'response.output_item.added' | 'response.output_item.done'; output_index: number; item: OutputItem }
  | ({
      type: 'response.content_part.added' | 'response.content_part.done';
      content_index: number;
      part: OutputText | ReasoningText;
    } & At)
  | ({ type: 'response.output_text.delta'; content_index: number; delta: string; logprobs: OutputLogprob[] } & At)
  | ({ type: 'response.output_text.done'; content_index: number; text: string; logprobs: OutputLogprob[] } & At)
  | ({ type: 'response.reasoning_text.delta'; content_index: number; delta: string } & At)
  | ({ type: 'response.reasoning_text.done'; content_index: number; text: string } & At)
  | ({ type: 'response.function_call_arguments.delta'; delta: string } & At)
  | ({ type: 'response.function_call_arguments.done'; name: string; arguments: string } & At);

export type LifeEvent = {
  type: 'response.created' | 'response.in_progress' | 'response.completed' | 'response.incomplete';
  response: ResponseObject;
};

export type ResponseEvent = (OutputEvent | LifeEvent) & { sequence_number: number };
