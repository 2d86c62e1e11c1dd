/** tokenizer.json, checked: nothing of it reaches the tokenizer before its fields have the types they are read as. */
import { CheckpointError } from '../errors.js';
import { type Fields, isFields } from '../folder.js';
import { bytesOfToken } from './bytes.js';

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  /** Takes the white space before or after it along. */
  lstrip: boolean;
  rstrip: boolean;
  /** Matches between word borders only. */
  singleWord: boolean;
  /** Is looked for after the others. */
  normalized: boolean;
}

export interface Vocabulary {
  added: AddedToken[];
  /** Indexed by id; holes are ids without a token. */
  bytes: Uint8Array[];
  ids: Map<string, number>;
  /** What a whole text begins and ends with, such as bos. */
  prefix: number[];
  suffix: number[];
  /** tokenizer.json with nothing left in it that turns plain text into special tokens. */
  plain: Fields;
}

const MAX_ID = 4_000_000;

export function readVocabulary(path: string, json: Fields): Vocabulary {
  const fail = (field: string, expected: string, found: unknown): never => {
    throw new CheckpointError(`${path}: ${field}: expected ${expected}, found ${describe(found)}`, 'is this a tokenizer.json?');
  };
  const { model, decoder } = json;
  if (!isFields(model)) return fail('model', 'an object', model);
  if (model.type !== undefined && model.type !== 'BPE') return fail('model.type', '"BPE"', model.type);
  if (!isFields(model.vocab)) return fail('model.vocab', 'an object', model.vocab);
  if (!Array.isArray(model.merges)) return fail('model.merges', 'an array', model.merges);
  for (const [i, merge] of model.merges.entries()) {
    const pair: unknown[] = typeof merge === 'string' ? merge.split(' ') : Array.isArray(merge) ? merge : [];
    if (pair.length !== 2 || pair.some((part) => typeof part !== 'string')) {
      return fail(`model.merges[${i}]`, 'a pair of tokens', merge);
    }
  }
  checkPatterns(json.pre_tokenizer, fail);
  if (!namesByteLevel(decoder)) return fail('decoder', 'ByteLevel', isFields(decoder) ? decoder.type : decoder);

  const ids = new Map<string, number>();
  const bytes: Uint8Array[] = [];
  const isId = (id: unknown): id is number => typeof id === 'number' && Number.isInteger(id) && id >= 0 && id <= MAX_ID;
  for (const [token, id] of Object.entries(model.vocab)) {
    if (!isId(id)) return fail(`model.vocab[${JSON.stringify(token)}]`, `an id from 0 to ${MAX_ID}`, id);
    if (bytes[id] !== undefined) return fail(`model.vocab[${JSON.stringify(token)}]`, 'an id of its own', id);
    ids.set(token, id);
    bytes[id] = bytesOfToken(token);
  }

  const added = json.added_tokens ?? [];
  if (!Array.isArray(added)) return fail('added_tokens', 'an array', added);
  const addedTokens = added.map((token: unknown, i): AddedToken => {
    if (!isFields(token)) return fail(`added_tokens[${i}]`, 'an object', token);
    if (!isId(token.id)) return fail(`added_tokens[${i}].id`, `an id from 0 to ${MAX_ID}`, token.id);
    if (typeof token.content !== 'string' || token.content === '') {
      return fail(`added_tokens[${i}].content`, 'text', token.content);
    }
    return {
      id: token.id,
      content: token.content,
      special: token.special === true,
      lstrip: token.lstrip === true,
      rstrip: token.rstrip === true,
      singleWord: token.single_word === true,
      normalized: token.normalized === true,
    };
  });
  for (const { id, content } of addedTokens) {
    ids.set(content, id);
    bytes[id] = new TextEncoder().encode(content);
  }

  // An added token that the vocabulary lists too must not come out of plain text by merging.
  const addedIds = new Set(addedTokens.map(({ id }) => id));
  const vocab = Object.fromEntries(Object.entries(model.vocab).filter(([, id]) => !addedIds.has(id as number)));
  const plain = { ...json, added_tokens: [], post_processor: null, model: { ...model, type: 'BPE', vocab } };
  return { added: addedTokens, bytes, ids, plain, ...wholeText(json.post_processor, fail) };
}

/** The ids that a TemplateProcessing puts around one text; other post-processors add none. */
function wholeText(processor: unknown, fail: (field: string, expected: string, found: unknown) => never) {
  const list = isFields(processor) && Array.isArray(processor.processors) ? processor.processors : [processor];
  const template = list.find((item): item is Fields => isFields(item) && item.type === 'TemplateProcessing');
  const prefix: number[] = [];
  const suffix: number[] = [];
  if (template === undefined) return { prefix, suffix };
  if (!Array.isArray(template.single)) return fail('post_processor.single', 'an array', template.single);
  let side = prefix;
  for (const piece of template.single as unknown[]) {
    if (isFields(piece) && isFields(piece.Sequence)) side = suffix;
    if (!isFields(piece) || !isFields(piece.SpecialToken)) continue;
    const name = String(piece.SpecialToken.id);
    const token = isFields(template.special_tokens) ? template.special_tokens[name] : undefined;
    if (!isFields(token) || !Array.isArray(token.ids) || !token.ids.every(Number.isInteger)) {
      return fail(`post_processor.special_tokens[${JSON.stringify(name)}].ids`, 'an array of ids', token);
    }
    side.push(...(token.ids as number[]));
  }
  return { prefix, suffix };
}

/** The tokenizer package only warns of a Split without a pattern, and then does not split. */
function checkPatterns(step: unknown, fail: (field: string, expected: string, found: unknown) => never): void {
  if (!isFields(step)) return;
  const { type, pattern, pretokenizers } = step;
  if (Array.isArray(pretokenizers)) for (const inner of pretokenizers as unknown[]) checkPatterns(inner, fail);
  const text = isFields(pattern) ? (pattern.Regex ?? pattern.String) : undefined;
  if (type === 'Split' && typeof text !== 'string') fail('pre_tokenizer pattern', 'Regex or String', text);
}

function namesByteLevel(decoder: unknown): boolean {
  if (!isFields(decoder)) return false;
  return decoder.type === 'ByteLevel' || (Array.isArray(decoder.decoders) && decoder.decoders.some(namesByteLevel));
}

function describe(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null || typeof value === 'number' || typeof value === 'boolean') return String(value);
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 40));
  return Array.isArray(value) ? 'an array' : 'an object';
}
