/**
 * Text to token ids and back, and conversations to prompts. Reads tokenizer.json, tokenizer_config.json,
 * generation_config.json and chat_template.jinja of a model folder; needs neither weights nor the addon.
 */
import { join } from 'node:path';
import { LING_TEMPLATE } from './chat/ling-template.js';
import { Markers } from './chat/markers.js';
import { ChatTemplate, type ChatTemplateText } from './chat/template.js';
import { renderApart } from './chat/template_thread.js';
import { checkFields } from './checks.js';
import { CheckpointError, EngineError, InvalidArgumentError } from './errors.js';
import { type Fields, isFields, readJson, readOptionalJson, readTextFile } from './folder.js';
import { type ModelSource, resolveModel } from './hub/index.js';
import { AddedTokenSplitter } from './text/added_tokens.js';
import { TokenDecoder } from './text/bytes.js';
import { Encoder, type Segment } from './text/encoder.js';
import { readVocabulary, type Vocabulary } from './text/vocabulary.js';
import type { ChatOptions, ChatTemplateSource, Message } from './types.js';

export interface TokenizerOptions extends ModelSource {
  /** Jinja text used in place of the folder's own chat template. */
  chatTemplate?: string | undefined;
}

export interface EncodeOptions {
  /** Recognises special tokens in the text. Default true: pass false for text that you did not write. */
  special?: boolean | undefined;
}

export interface DecodeOptions {
  /** Leaves special tokens out of the text. Default true. */
  skipSpecial?: boolean | undefined;
}

const NO_BYTES = new Uint8Array(0);
/** Tags that are read out of an answer's text, whether or not a vocabulary makes special tokens of them. */
const ANSWER_TAGS = ['<think>', '</think>', '<tool_call>', '</tool_call>'];

export class Tokenizer {
  /** One more than the largest id. A model's own vocabulary may be padded beyond it. */
  readonly vocabSize: number;
  readonly specialIds: ReadonlySet<number>;
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  /** Ids that end a turn: eos of generation_config.json, eos of the tokenizer, `<|role_end|>`. */
  readonly stopIds: readonly number[];

  private readonly encoder: Encoder;
  private readonly splitter: AddedTokenSplitter;
  private readonly template: ChatTemplate;

  /** Reads a model folder, or any folder with a tokenizer.json in it; or a model of a hub by its id, as `Model.load` does. */
  static async load(model: string, options: TokenizerOptions = {}): Promise<Tokenizer> {
    if (typeof model !== 'string') throw new InvalidArgumentError('folder', 'folder: expected a path');
    const { chatTemplate, ...source } = options;
    checkFields('options', options, ['chatTemplate', 'download', 'revision', 'source']);
    const folder = await resolveModel(model, source);
    const hint = `a model folder holds config.json, tokenizer.json and the weights`;
    const json = await readJson(folder, 'tokenizer.json', hint);
    const config = await readOptionalJson(folder, 'tokenizer_config.json');
    const generation = await readOptionalJson(folder, 'generation_config.json');
    const template = await readTemplate(folder, config, chatTemplate);
    const path = join(folder, 'tokenizer.json');
    return new Tokenizer(path, readVocabulary(path, json), config, generation, template);
  }

  private constructor(
    path: string,
    private readonly vocabulary: Vocabulary,
    config: Fields,
    generation: Fields,
    template: ChatTemplateText,
  ) {
    const { added, bytes } = vocabulary;
    this.encoder = new Encoder(path, vocabulary.plain);
    this.splitter = new AddedTokenSplitter(added);
    this.vocabSize = bytes.length;
    this.specialIds = new Set(added.filter((token) => token.special).map((token) => token.id));
    const named = namedTokens(config);
    const idOf = (name: string) => this.idOf(named.get(name) ?? '') ?? null;
    this.bosId = idOf('bos_token');
    this.eosId = idOf('eos_token');
    this.padId = idOf('pad_token');
    const roleEnd = this.idOf('<|role_end|>');
    this.stopIds = [...new Set([...idList(generation.eos_token_id), this.eosId ?? [], roleEnd ?? []].flat())];
    const spellings = added.map((token) => token.content);
    this.template = new ChatTemplate(template, spellings, named);
  }

  get chatTemplateSource(): ChatTemplateSource {
    return this.template.source;
  }

  /** Ids of a whole text; blocks the event loop for about a second per megabyte. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    return this.whole(this.encoder.encode(this.segments(text, options)), options);
  }

  /** As `encode`, but long texts are encoded in a worker thread. */
  async encodeAsync(text: string, options: EncodeOptions = {}): Promise<number[]> {
    return this.whole(await this.encoder.encodeAsync(this.segments(text, options)), options);
  }

  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const decoder = this.createDecoder(options);
    let text = '';
    for (const id of ids) {
      if (!Number.isInteger(id) || id < 0 || id >= this.vocabSize) {
        throw new InvalidArgumentError('ids', `ids: expected ids from 0 to ${this.vocabSize - 1}, found ${String(id)}`);
      }
      text += decoder.push(id);
    }
    return text + decoder.flush();
  }

  /** Decodes a stream: text comes out as soon as its characters are whole. Ids without a token are passed over. */
  createDecoder(options: DecodeOptions = {}): TokenDecoder {
    checkFields('options', options, ['skipSpecial']);
    const skipped = (options.skipSpecial ?? true) ? this.specialIds : new Set<number>();
    return new TokenDecoder((id) => (skipped.has(id) ? NO_BYTES : this.bytesOf(id)));
  }

  /** As `createDecoder`, but tags of reasoning and of tool calls come out even where they are special tokens. */
  createAnswerDecoder(skipSpecial: boolean): TokenDecoder {
    const skipped = new Set(skipSpecial ? this.specialIds : []);
    for (const tag of ANSWER_TAGS) skipped.delete(this.idOf(tag) ?? -1);
    return new TokenDecoder((id) => (skipped.has(id) ? NO_BYTES : this.bytesOf(id)));
  }

  /** The id of a token by its spelling in the vocabulary. */
  idOf(token: string): number | undefined {
    return this.vocabulary.ids.get(token);
  }

  /** The bytes a token stands for; none for ids without a token. */
  bytesOf(id: number): Uint8Array {
    return this.vocabulary.bytes[id] ?? NO_BYTES;
  }

  /**
   * The prompt of a conversation as text. Encoding that text would recognise special tokens that a message spells: use
   * `encodeChat`, as `generate` does.
   */
  applyChatTemplate(messages: readonly Message[] | string, options: ChatOptions = {}): string {
    checkFields('options', options, CHAT_OPTIONS);
    const { marked, markers } = this.template.render(messages, options);
    return markers.strip(marked);
  }

  /** The ids of a conversation. Special tokens are those of the template; in messages they are plain text. */
  async encodeChat(messages: readonly Message[] | string, options: ChatOptions = {}): Promise<number[]> {
    checkFields('options', options, CHAT_OPTIONS);
    const { marked, markers } = this.template.render(messages, options);
    return this.encoder.encodeAsync(this.chatSegments(marked, markers));
  }

  /** As `encodeChat`, with a template from somebody who is not trusted: rendered apart, with limits on time and memory. */
  async encodeChatWith(template: string, messages: readonly Message[] | string, options: ChatOptions = {}): Promise<number[]> {
    checkFields('options', options, CHAT_OPTIONS);
    const { spellings, tokens } = this.template;
    const { marked, marker } = await renderApart({ template, spellings, tokens, messages, options });
    return this.encoder.encodeAsync(this.chatSegments(marked, new Markers([], [], marker)));
  }

  /**
   * Does once what the first conversation would have to wait for: parses the template, compiles the regular expressions.
   * What is wrong with a template is the business of the call that uses it.
   */
  async warmUp(): Promise<void> {
    try {
      for (let i = 0; i < 3; i++) await this.encodeChat([{ role: 'user', content: 'Is this warm? 38.5 °C.' }]);
    } catch (error) {
      if (!(error instanceof EngineError)) throw error;
    }
  }

  /** Cuts where the template wrote a special token, then takes the markers out of the text between. */
  private chatSegments(marked: string, markers: Markers): Segment[] {
    const segments: Segment[] = [];
    let before = '';
    for (const part of this.splitter.split(marked)) {
      const guarded = typeof part === 'number' && markers.isGuarded(before);
      const text = guarded ? new TextDecoder().decode(this.bytesOf(part)) : part;
      before = typeof text === 'string' ? text : '';
      const last = segments.at(-1);
      if (typeof text === 'string' && typeof last === 'string') segments[segments.length - 1] = last + markers.strip(text);
      else segments.push(typeof text === 'string' ? markers.strip(text) : text);
    }
    return segments;
  }

  private segments(text: string, options: EncodeOptions): Segment[] {
    checkFields('options', options, ['special']);
    if (typeof text !== 'string') throw new InvalidArgumentError('text', `text: expected a string, found ${typeof text}`);
    return (options.special ?? true) ? this.splitter.split(text) : [text];
  }

  private whole(ids: number[], options: EncodeOptions): number[] {
    const { prefix, suffix } = this.vocabulary;
    return (options.special ?? true) && prefix.length + suffix.length > 0 ? [...prefix, ...ids, ...suffix] : ids;
  }
}

export const CHAT_OPTIONS = ['tools', 'addGenerationPrompt', 'continueFinalMessage', 'chatTemplateKwargs'] as const;

/** One id, a list of ids, or none. */
export function idList(value: unknown): number[] {
  const list: unknown[] = Array.isArray(value) ? value : [value];
  return list.filter((id): id is number => Number.isInteger(id) && (id as number) >= 0);
}

/** bos_token and its kin, by name, for the template. */
function namedTokens(config: Fields): Map<string, string> {
  const tokens = new Map<string, string>();
  for (const [name, value] of Object.entries(config)) {
    const content = isFields(value) ? value.content : value;
    if (name.endsWith('_token') && typeof content === 'string') tokens.set(name, content);
  }
  return tokens;
}

/** Which chat template a folder would be used with. */
export async function chatTemplateSource(folder: string): Promise<ChatTemplateSource> {
  return (await readTemplate(folder, await readOptionalJson(folder, 'tokenizer_config.json'), undefined)).source;
}

async function readTemplate(folder: string, config: Fields, override: string | undefined): Promise<ChatTemplateText> {
  if (override !== undefined) {
    if (typeof override === 'string') return { source: 'option', text: override };
    throw new InvalidArgumentError('chatTemplate', 'chatTemplate: expected Jinja text');
  }
  const file = await readTextFile(folder, 'chat_template.jinja');
  if (file !== undefined) return { source: 'chat_template.jinja', text: file };
  const given = config.chat_template;
  if (given === undefined || given === null) return { source: 'built-in', text: LING_TEMPLATE };
  if (typeof given === 'string') return { source: 'tokenizer_config.json', text: given };
  const named = new Map<string, string>();
  for (const entry of Array.isArray(given) ? (given as unknown[]) : []) {
    if (isFields(entry) && typeof entry.name === 'string' && typeof entry.template === 'string') {
      named.set(entry.name, entry.template);
    }
  }
  const text = named.get('default');
  if (text !== undefined) return { source: 'tokenizer_config.json', text, toolUse: named.get('tool_use') };
  throw new CheckpointError(
    `${join(folder, 'tokenizer_config.json')}: chat_template: expected text or named templates with one called default`,
    'pass a template of your own as chatTemplate',
  );
}
