/** Reads a body of /v1/responses. Nothing is stored, so the whole conversation comes as `input`. */
import type { GenerateRequest, JsonObject, Message, ToolCall } from '../types.js';
import { checkSize, conversation, toolsOf } from './chat_prompt.js';
import { badRequest } from './errors.js';
import type { Host } from './host.js';
import { newId } from './parts.js';
import { type RequestContext, samplingOptions, seedOfChoice, WIRE_NAMES } from './sampling.js';
import { ResponseBody, type ResponseItem } from './schema.js';
import type { WantedForm } from './structured.js';
import { formWithTools, offersTools } from './tools.js';
import { BodyReader } from './validate.js';

export interface ResponsePlan {
  requests: GenerateRequest[];
  id: string;
  stream: boolean;
  body: ResponseBody;
  findsCalls: boolean;
  oneCall: boolean;
  logprobs: boolean;
  wireNames: ReadonlyMap<string, string>;
}

const reader = new BodyReader(ResponseBody);

export function readResponse(host: Host, given: unknown, context: RequestContext): ResponsePlan {
  const body = reader.read(given);
  host.checkModel(body.model);
  const wireNames = new Map([...WIRE_NAMES, ['maxTokens', 'max_output_tokens'], ['logprobs', 'top_logprobs']]);
  for (const name of ['messages', 'prompt']) wireNames.set(name, 'input');
  const sampling = samplingOptions(body, context, host.model.info.context - 1);
  sampling.maxTokens = body.max_output_tokens;
  const logprobs = body.top_logprobs !== undefined || (body.include ?? []).includes('message.output_text.logprobs');
  if (logprobs) sampling.logprobs = body.top_logprobs ?? 0;

  const { tools = [], tool_choice: wish = 'auto', parallel_tool_calls: parallel = true } = body;
  const offered = offersTools(tools, wish);
  const wanted = formatOf(body);
  const form = offered ? formWithTools(wanted, tools, wish, parallel) : wanted;
  sampling.structured = form?.form;
  if (form !== undefined) wireNames.set('structured', form.field);

  checkSize('tools', tools);
  checkSize('chat_template_kwargs', body.chat_template_kwargs);
  const effort = body.reasoning?.effort ? { reasoning_effort: body.reasoning.effort } : {};
  const messages = conversation(messagesOf(body), host.options.defaultSystemPrompt);
  const chatTemplateKwargs = { ...effort, ...body.chat_template_kwargs };
  const shown = offered ? toolsOf(given, tools).map(nested) : undefined;
  return {
    requests: [{ ...sampling, messages, chatTemplateKwargs, tools: shown, seed: seedOfChoice(body.seed, 0) }],
    id: newId('resp_', body.request_id ?? context.requestId),
    stream: body.stream ?? false,
    body,
    findsCalls: offered,
    oneCall: !parallel,
    logprobs,
    wireNames,
  };
}

function formatOf({ text }: ResponseBody): WantedForm | undefined {
  const format = text?.format;
  if (format === undefined) return undefined;
  if (format.type === 'json_schema') return { field: 'text.format', form: { json: format.schema } };
  return format.type === 'json_object' ? { field: 'text.format', form: { jsonObject: true } } : undefined;
}

/** A tool as chat templates know it: its function is an object of its own. */
function nested(tool: JsonObject): JsonObject {
  const fields = new Map<string, unknown>(tool instanceof Map ? tool : Object.entries(tool));
  fields.delete('type');
  fields.delete('strict');
  return new Map<string, unknown>([
    ['type', 'function'],
    ['function', fields],
  ]) as JsonObject;
}

function messagesOf({ input, instructions }: ResponseBody): Message[] {
  const messages: Message[] = instructions === undefined ? [] : [{ role: 'system', content: instructions }];
  if (typeof input === 'string') return [...messages, { role: 'user', content: input }];
  // Reasoning and calls are items of their own here; a template knows them as parts of the assistant's message.
  let thinking = '';
  for (const [i, item] of input.entries()) {
    const path = `input[${i}]`;
    const type = item.type ?? 'message';
    if (type === 'reasoning') thinking += textOf(item.content);
    else if (type === 'function_call_output') messages.push(outputMessage(item, path));
    else if (type === 'function_call') {
      const call = callOf(item, path);
      const last = messages.at(-1);
      if (last?.role === 'assistant') last.tool_calls = [...(last.tool_calls ?? []), call];
      else messages.push(thought({ role: 'assistant', content: '', tool_calls: [call] }));
    } else messages.push(thought(plainMessage(item, path)));
  }
  return messages;

  function thought(message: Message): Message {
    if (message.role !== 'assistant' || thinking === '') return message;
    const reasoning_content = thinking;
    thinking = '';
    return { ...message, reasoning_content };
  }
}

function plainMessage(item: ResponseItem, path: string): Message {
  if (item.role === undefined) throw badRequest(`${path}.role`, `${path}.role: missing`, 'missing_required_parameter');
  return { role: item.role === 'developer' ? 'system' : item.role, content: textOf(item.content) };
}

function callOf(item: ResponseItem, path: string): ToolCall {
  const { name, arguments: text, call_id: id } = item;
  if (name === undefined) throw badRequest(`${path}.name`, `${path}.name: missing`, 'missing_required_parameter');
  return { id, type: 'function', function: { name, arguments: text ?? '{}' } };
}

function outputMessage(item: ResponseItem, path: string): Message {
  if (item.output === undefined) throw badRequest(`${path}.output`, `${path}.output: missing`, 'missing_required_parameter');
  return { role: 'tool', content: textOf(item.output), tool_call_id: item.call_id };
}

function textOf(content: ResponseItem['content'] | ResponseItem['output']): string {
  if (typeof content === 'string') return content;
  return (content ?? []).map(({ text }) => text).join('');
}
