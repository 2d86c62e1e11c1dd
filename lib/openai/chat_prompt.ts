/** From the messages of a body to what the library renders: roles, tools, variables, and a template of the request's own. */
import { parseJson } from '../json.js';
import type { ChatOptions, JsonObject, Message, ToolCall } from '../types.js';
import { badRequest } from './errors.js';
import type { Host } from './host.js';
import type { ChatBody, ChatMessage } from './schema.js';

const MAX_JSON_CHARACTERS = 1 << 17;

type PromptFields = Pick<
  ChatBody,
  'messages' | 'tools' | 'add_generation_prompt' | 'continue_final_message' | 'chat_template' | 'chat_template_kwargs'
>;

/** A conversation still to be rendered, or its ids where the request brought the template. */
export type ChatPrompt =
  | ({ messages: Message[]; prompt?: undefined } & ChatOptions)
  | { prompt: number[]; messages?: undefined };

export interface PromptOptions {
  showTools: boolean;
  /** Variables for the template, which `chat_template_kwargs` may replace. */
  variables?: Record<string, unknown>;
}

/** `given` is the body as it came: from JSON text, tools keep number text and key order, as the prompt shows them. */
export async function chatPrompt(host: Host, given: unknown, body: PromptFields, options: PromptOptions): Promise<ChatPrompt> {
  const tools = options.showTools ? body.tools : undefined;
  checkSize('tools', tools);
  checkSize('chat_template_kwargs', body.chat_template_kwargs);
  const chat: ChatOptions = {
    addGenerationPrompt: body.add_generation_prompt,
    continueFinalMessage: body.continue_final_message,
    chatTemplateKwargs: { ...options.variables, ...body.chat_template_kwargs },
  };
  const messages = conversation(body.messages.map(toMessage), host.options.defaultSystemPrompt);
  const { chat_template: template } = body;
  if (template === undefined) return { messages, ...chat, tools: tools && toolsOf(given, tools) };
  if (host.options.trustRequestChatTemplate !== true) {
    const message = 'chat_template: this server takes no template from a request (--trust-request-chat-template allows it)';
    throw badRequest('chat_template', message);
  }
  const ids = await host.model.tokenizer.encodeChatWith(template, messages, {
    ...chat,
    tools: tools as JsonObject[] | undefined,
  });
  return { prompt: ids };
}

/** What a template writes as JSON it writes on the thread that serves everybody. */
export function checkSize(field: string, value: object | undefined): void {
  const size = value === undefined ? 0 : JSON.stringify(value).length;
  if (size <= MAX_JSON_CHARACTERS) return;
  throw badRequest(field, `${field}: expected at most ${MAX_JSON_CHARACTERS} characters of JSON, found ${size}`);
}

/** The prompt as ids: for choices that share one, and for callers who only count. */
export async function promptIds(host: Host, prompt: ChatPrompt): Promise<number[]> {
  if (prompt.prompt !== undefined) return prompt.prompt;
  const { messages, ...options } = prompt;
  return host.model.tokenizer.encodeChat(messages, options);
}

export function conversation(messages: Message[], systemPrompt: string | undefined): Message[] {
  if (systemPrompt === undefined || messages[0]?.role === 'system') return messages;
  return [{ role: 'system', content: systemPrompt }, ...messages];
}

function toMessage(message: ChatMessage): Message {
  const { role, content = null, name, reasoning, reasoning_content, tool_call_id, tool_calls } = message;
  const result: Message = { role: role === 'developer' ? 'system' : role, content };
  if (name) result.name = name;
  const thinking = reasoning_content ?? reasoning;
  if (thinking) result.reasoning_content = thinking;
  if (tool_call_id) result.tool_call_id = tool_call_id;
  if (tool_calls && tool_calls.length > 0) {
    result.tool_calls = tool_calls.map(({ id, function: f }): ToolCall => ({ id, type: 'function', function: f }));
  }
  return result;
}

/** The tools of a body as they were written. */
export function toolsOf(given: unknown, tools: readonly object[]): JsonObject[] {
  if (typeof given !== 'string') return tools as JsonObject[];
  const body = parseJson(given) as Map<string, unknown>;
  return body.get('tools') as JsonObject[];
}
