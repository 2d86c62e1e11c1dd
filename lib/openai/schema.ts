/**
 * The request bodies of the API, field by field. What each takes is checked here by type; ranges of sampling settings are
 * the library's own (lib/options.ts). A field that is not here is refused.
 */
import Type, { type Static, type TProperties, type TSchema } from 'typebox';

/** More than any context holds. */
const MAX_MESSAGES = 16_384;

const string = (expected = 'a string') => Type.String({ expected });
const boolean = () => Type.Boolean({ expected: 'true or false' });
const number = () => Type.Number({ expected: 'a number' });
const integer = () => Type.Integer({ expected: 'an integer' });
const choice = <T extends string[]>(...values: [...T]) => Type.Enum<T>(values, { expected: `one of ${values.join(', ')}` });
const list = <T extends TSchema>(items: T, expected: string, maxItems = 1 << 20) => Type.Array(items, { expected, maxItems });
const strings = (maxItems?: number) => list(Type.String(), 'an array of strings', maxItems);
const ids = () => list(Type.Integer({ minimum: 0 }), 'an array of token ids');
/** Of any content: a Record would be walked through key by key, however many there are. */
const object = () => Type.Unsafe<Record<string, unknown>>(Type.Object({}, { expected: 'an object' }));
const nullable = <T extends TSchema>(schema: T) =>
  Type.Union([schema, Type.Null()], { expected: (schema as { expected?: string }).expected });
const closed = <T extends TProperties>(properties: T) =>
  Type.Object(properties, { additionalProperties: false, expected: 'an object' });
const optional = <T extends Record<string, TSchema>>(properties: T) => Type.Partial(Type.Object(properties)).properties;

// -------------------------------------------------------------------------------------------------- without an effect

/**
 * Fields that are taken and change nothing. They describe the caller to a service that keeps accounts, or ask for what
 * holds here anyway; a value that would have to change something is refused.
 */
const WITHOUT_EFFECT = optional({
  user: string(),
  safety_identifier: string(),
  prompt_cache_key: string(),
  /** Nothing is stored, nothing is looked up by these. */
  metadata: object(),
  store: boolean(),
  service_tier: string(),
  /** There is one tokenizer, and it puts no spaces between special tokens. */
  spaces_between_special_tokens: boolean(),
  use_beam_search: Type.Literal(false, { expected: 'false: there is no beam search' }),
  length_penalty: Type.Literal(1, { expected: '1: it belongs to beam search' }),
  /** Prompts are cut at their beginning. */
  truncation_side: Type.Literal('left', { expected: '"left"' }),
});

// ------------------------------------------------------------------------------------------------------------- shared

const SAMPLING = optional({
  temperature: number(),
  top_p: number(),
  top_k: integer(),
  min_p: number(),
  repetition_penalty: number(),
  presence_penalty: number(),
  frequency_penalty: number(),
  logit_bias: object(),
  seed: integer(),
  stop: Type.Union([Type.String(), strings()], { expected: 'a string or an array of strings' }),
  stop_token_ids: ids(),
  include_stop_str_in_output: boolean(),
  ignore_eos: boolean(),
  min_tokens: integer(),
  skip_special_tokens: boolean(),
  allowed_token_ids: ids(),
  bad_words: strings(1024),
  prompt_logprobs: integer(),
  truncate_prompt_tokens: integer(),
  thinking_token_budget: integer(),
});

const STRUCTURED = optional({
  structured_outputs: closed(
    optional({
      json: Type.Union([string(), object()], { expected: 'a JSON schema' }),
      json_object: Type.Literal(true, { expected: 'true' }),
      regex: string(),
      choice: strings(),
      grammar: string(),
    }),
  ),
  guided_json: Type.Union([string(), object()], { expected: 'a JSON schema' }),
  guided_regex: string(),
  guided_choice: strings(),
  guided_grammar: string(),
});

const REQUEST = optional({
  model: string(),
  n: Type.Integer({ minimum: 1, maximum: 128, expected: 'an integer from 1 to 128' }),
  stream: boolean(),
  stream_options: closed(
    optional({ include_usage: boolean(), continuous_usage_stats: boolean(), include_obfuscation: boolean() }),
  ),
  priority: integer(),
  request_id: Type.String({
    minLength: 1,
    maxLength: 128,
    pattern: '^[\\w.:-]+$',
    expected: 'up to 128 letters, digits and . : - _',
  }),
  cache_salt: string(),
  return_token_ids: boolean(),
  return_tokens_as_token_ids: boolean(),
});

const TEMPLATE = optional({
  add_generation_prompt: boolean(),
  continue_final_message: boolean(),
  chat_template: string('Jinja text'),
  chat_template_kwargs: object(),
});

const RESPONSE_FORMAT = Type.Union(
  [
    closed({ type: Type.Enum(['text', 'json_object']) }),
    closed({
      type: Type.Literal('json_schema'),
      json_schema: closed({
        name: Type.Optional(Type.String()),
        description: Type.Optional(nullable(Type.String())),
        schema: Type.Optional(object()),
        strict: Type.Optional(nullable(Type.Boolean())),
      }),
    }),
  ],
  { expected: '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"name", "schema"}}' },
);

// ---------------------------------------------------------------------------------------------------------- messages

const CONTENT = Type.Union([Type.String(), Type.Array(closed({ type: Type.Literal('text'), text: Type.String() }))], {
  expected: 'a string or an array of text parts',
});

const MESSAGE = closed({
  role: choice('system', 'developer', 'user', 'assistant', 'tool'),
  ...optional({
    content: nullable(CONTENT),
    name: nullable(string()),
    reasoning: nullable(string()),
    reasoning_content: nullable(string()),
    tool_call_id: nullable(string()),
    tool_calls: nullable(
      list(
        closed({
          id: Type.Optional(string()),
          type: Type.Optional(Type.Literal('function', { expected: '"function"' })),
          index: Type.Optional(integer()),
          function: closed({ name: string(), arguments: string('JSON text') }),
        }),
        'an array of tool calls',
        128,
      ),
    ),
    // Parts of an answer that clients send back as they came; they hold nothing a prompt could show.
    refusal: Type.Null({ expected: 'null' }),
    audio: Type.Null({ expected: 'null' }),
    function_call: Type.Null({ expected: 'null' }),
    annotations: nullable(Type.Array(Type.Unknown(), { maxItems: 0, expected: 'an empty array' })),
  }),
});

const FUNCTION = closed({
  name: Type.String({ pattern: '^[\\w.-]{1,64}$', expected: 'a name of up to 64 letters, digits, ".", "_" and "-"' }),
  description: Type.Optional(nullable(string())),
  parameters: Type.Optional(nullable(object())),
  strict: Type.Optional(nullable(boolean())),
});

const TOOLS = optional({
  tools: list(
    closed({ type: Type.Literal('function', { expected: '"function"' }), function: FUNCTION }),
    'an array of tools',
    128,
  ),
  tool_choice: Type.Union(
    [
      Type.Enum(['none', 'auto', 'required']),
      closed({ type: Type.Literal('function'), function: closed({ name: Type.String() }) }),
    ],
    { expected: 'none, auto, required or {"type": "function", "function": {"name"}}' },
  ),
  parallel_tool_calls: boolean(),
});

// ------------------------------------------------------------------------------------------------------------- bodies

export const ChatBody = closed({
  messages: Type.Array(MESSAGE, { minItems: 1, maxItems: MAX_MESSAGES, expected: `an array of 1 to ${MAX_MESSAGES} messages` }),
  ...optional({
    max_tokens: integer(),
    max_completion_tokens: integer(),
    logprobs: boolean(),
    top_logprobs: integer(),
    response_format: RESPONSE_FORMAT,
    reasoning_effort: choice('none', 'minimal', 'low', 'medium', 'high', 'xhigh'),
    include_reasoning: boolean(),
  }),
  ...TOOLS,
  ...TEMPLATE,
  ...REQUEST,
  ...SAMPLING,
  ...STRUCTURED,
  ...WITHOUT_EFFECT,
});

export const CompletionBody = closed({
  prompt: Type.Union(
    [
      Type.String(),
      Type.Array(Type.String(), { minItems: 1, maxItems: 1024 }),
      Type.Array(Type.Integer({ minimum: 0 }), { minItems: 1 }),
      Type.Array(Type.Array(Type.Integer({ minimum: 0 })), { minItems: 1, maxItems: 1024 }),
    ],
    { expected: 'a string, an array of strings, an array of token ids, or an array of those (at most 1024 prompts)' },
  ),
  ...optional({
    max_tokens: integer(),
    logprobs: integer(),
    echo: boolean(),
    response_format: RESPONSE_FORMAT,
    suffix: Type.Literal('', { expected: 'none: text is only continued' }),
    best_of: Type.Literal(1, { expected: '1: choose with n' }),
    add_special_tokens: boolean(),
  }),
  ...REQUEST,
  ...SAMPLING,
  ...STRUCTURED,
  ...WITHOUT_EFFECT,
});

const RESPONSE_PART = closed({
  type: Type.Enum(['input_text', 'output_text', 'text']),
  text: Type.String(),
  annotations: Type.Optional(Type.Array(Type.Unknown())),
  logprobs: Type.Optional(Type.Array(Type.Unknown())),
});

const ITEM = Type.Object(
  {
    type: Type.Optional(choice('message', 'function_call', 'function_call_output', 'reasoning')),
    id: Type.Optional(nullable(string())),
    status: Type.Optional(nullable(string())),
    role: Type.Optional(choice('system', 'developer', 'user', 'assistant')),
    content: Type.Optional(
      nullable(
        Type.Union(
          [
            Type.String(),
            Type.Array(Type.Union([RESPONSE_PART, closed({ type: Type.Literal('reasoning_text'), text: Type.String() })])),
          ],
          {
            expected: 'a string or an array of text parts',
          },
        ),
      ),
    ),
    call_id: Type.Optional(string()),
    name: Type.Optional(string()),
    arguments: Type.Optional(string('JSON text')),
    output: Type.Optional(
      Type.Union([Type.String(), Type.Array(RESPONSE_PART)], { expected: 'a string or an array of text parts' }),
    ),
    summary: Type.Optional(Type.Array(Type.Unknown())),
    encrypted_content: Type.Optional(Type.Null({ expected: 'null' })),
  },
  { additionalProperties: false, expected: 'an input item' },
);

export const ResponseBody = closed({
  input: Type.Union([Type.String(), Type.Array(ITEM, { minItems: 1, maxItems: MAX_MESSAGES })], {
    expected: `a string or an array of 1 to ${MAX_MESSAGES} input items`,
  }),
  ...optional({
    instructions: string(),
    max_output_tokens: integer(),
    top_logprobs: integer(),
    include: list(choice('message.output_text.logprobs', 'reasoning.encrypted_content'), 'an array of field names'),
    tools: list(
      closed({ type: Type.Literal('function', { expected: '"function"' }), ...FUNCTION.properties }),
      'an array of function tools',
      128,
    ),
    tool_choice: Type.Union(
      [Type.Enum(['none', 'auto', 'required']), closed({ type: Type.Literal('function'), name: Type.String() })],
      { expected: 'none, auto, required or {"type": "function", "name"}' },
    ),
    parallel_tool_calls: boolean(),
    text: closed(
      optional({
        format: Type.Union(
          [
            closed({ type: Type.Enum(['text', 'json_object']) }),
            closed({
              type: Type.Literal('json_schema'),
              schema: object(),
              ...optional({ name: Type.String(), description: nullable(Type.String()), strict: nullable(Type.Boolean()) }),
            }),
          ],
          { expected: '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "name", "schema"}' },
        ),
      }),
    ),
    reasoning: closed(
      optional({
        effort: nullable(choice('none', 'minimal', 'low', 'medium', 'high', 'xhigh')),
        summary: Type.Null({ expected: 'null' }),
      }),
    ),
    truncation: Type.Literal('disabled', { expected: '"disabled"' }),
    background: Type.Literal(false, { expected: 'false: nothing runs in the background' }),
    chat_template_kwargs: object(),
  }),
  ...only(REQUEST, ['model', 'stream', 'priority', 'request_id', 'cache_salt']),
  stream_options: Type.Optional(closed(optional({ include_obfuscation: boolean() }))),
  ...SAMPLING,
  ...WITHOUT_EFFECT,
});

export const TokenizeBody = closed(
  optional({
    model: string(),
    prompt: string(),
    add_special_tokens: boolean(),
    return_token_strs: boolean(),
    messages: ChatBody.properties.messages,
    tools: TOOLS.tools,
    ...TEMPLATE,
  }),
);

export const DetokenizeBody = closed({ model: Type.Optional(string()), tokens: ids() });

export type ChatBody = Static<typeof ChatBody>;
export type CompletionBody = Static<typeof CompletionBody>;
export type ResponseBody = Static<typeof ResponseBody>;
export type TokenizeBody = Static<typeof TokenizeBody>;
export type DetokenizeBody = Static<typeof DetokenizeBody>;
export type ChatMessage = Static<typeof MESSAGE>;
export type ResponseItem = Static<typeof ITEM>;
export type SamplingFields = Partial<Static<ReturnType<typeof Type.Object<typeof SAMPLING>>>>;
export type StructuredFields = Static<ReturnType<typeof Type.Object<typeof STRUCTURED>>>;
export type RequestFields = Static<ReturnType<typeof Type.Object<typeof REQUEST>>>;
export type ResponseFormat = Static<typeof RESPONSE_FORMAT>;

function only<T extends object, K extends keyof T>(from: T, names: readonly K[]): Pick<T, K> {
  return Object.fromEntries(names.map((name) => [name, from[name]])) as Pick<T, K>;
}
