/**
 * Fields that several request bodies share, and the words that schemas are written in. What a field takes is checked by
 * type; ranges of sampling settings are the library's own (lib/request_options.ts).
 */
import Type, { type Static, type TProperties, type TSchema } from 'typebox';

/** More than any context holds. */
export const MAX_MESSAGES = 16_384;

export const string = (expected = 'a string') => Type.String({ expected });
export const boolean = () => Type.Boolean({ expected: 'true or false' });
export const number = () => Type.Number({ expected: 'a number' });
export const integer = () => Type.Integer({ expected: 'an integer' });
export const choice = <T extends string[]>(...values: [...T]) =>
  Type.Enum<T>(values, { expected: `one of ${values.join(', ')}` });
export const list = <T extends TSchema>(items: T, expected: string, maxItems = 1 << 20) =>
  Type.Array(items, { expected, maxItems });
export const strings = (maxItems?: number) => list(Type.String(), 'an array of strings', maxItems);
export const ids = () => list(Type.Integer({ minimum: 0 }), 'an array of token ids');
/** Of any content: a Record would be walked through key by key, however many there are. */
export const object = () => Type.Unsafe<Record<string, unknown>>(Type.Object({}, { expected: 'an object' }));
export const nullable = <T extends TSchema>(schema: T) =>
  Type.Union([schema, Type.Null()], { expected: (schema as { expected?: string }).expected });
export const closed = <T extends TProperties>(properties: T) =>
  Type.Object(properties, { additionalProperties: false, expected: 'an object' });
export const optional = <T extends Record<string, TSchema>>(properties: T) => Type.Partial(Type.Object(properties)).properties;

// -------------------------------------------------------------------------------------------------- without an effect

/**
 * Fields that are taken and change nothing. They describe the caller to a service that keeps accounts, or ask for what
 * holds here anyway; a value that would have to change something is refused.
 */
export const WITHOUT_EFFECT = optional({
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

export const SAMPLING = optional({
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

export const STRUCTURED = optional({
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

export const REQUEST = optional({
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

export const TEMPLATE = optional({
  add_generation_prompt: boolean(),
  continue_final_message: boolean(),
  chat_template: string('Jinja text'),
  chat_template_kwargs: object(),
});

export const RESPONSE_FORMAT = Type.Union(
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

export type SamplingFields = Partial<Static<ReturnType<typeof Type.Object<typeof SAMPLING>>>>;
export type StructuredFields = Static<ReturnType<typeof Type.Object<typeof STRUCTURED>>>;
export type RequestFields = Static<ReturnType<typeof Type.Object<typeof REQUEST>>>;
export type ResponseFormat = Static<typeof RESPONSE_FORMAT>;
