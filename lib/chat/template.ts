/**
 * Renders a conversation with the chat template of a model folder. The result is cut at the special tokens that the
 * template itself wrote, so that message text can be encoded apart from them.
 */
import { CheckpointError, EngineError, InvalidArgumentError } from '../errors.js';
import type { ChatOptions, ChatTemplateSource, Message } from '../types.js';
import { array, boolean, ChatInterpreter, nothing, string, TemplateRefusal } from './interpreter.js';
import { Environment, type Node, parse, tokenize } from './jinja.js';
import { Markers } from './markers.js';
import { guardedMessage, guardedValue, readConversation, stringsOf } from './messages.js';

export interface ChatTemplateText {
  source: ChatTemplateSource;
  text: string;
  /** Used in place of `text` when tools are given. */
  toolUse?: string | undefined;
}

/** A rendered prompt: text with the markers still in it, and the means to read it. */
export interface RenderedChat {
  marked: string;
  markers: Markers;
}

export class ChatTemplate {
  readonly source: ChatTemplateSource;
  private readonly compiled = new Map<string, Node>();

  /**
   * `spellings`: every string that the tokenizer turns into one token of its own.
   * `tokens`: variables such as bos_token, which a template may write.
   */
  constructor(
    private readonly template: ChatTemplateText,
    readonly spellings: readonly string[],
    readonly tokens: ReadonlyMap<string, string>,
  ) {
    this.source = template.source;
  }

  render(messages: readonly Message[] | string, options: ChatOptions = {}): RenderedChat {
    const conversation = readConversation(messages, options);
    const continues = options.continueFinalMessage ?? false;
    const opensTurn = options.addGenerationPrompt ?? !continues;
    if (continues && opensTurn) {
      const message = 'continueFinalMessage: excludes addGenerationPrompt, since the turn is already open';
      throw new InvalidArgumentError('continueFinalMessage', message);
    }
    const text = conversation.tools && this.template.toolUse !== undefined ? this.template.toolUse : this.template.text;
    const inputs = [text, ...this.tokens.values()];
    for (const [path, value] of Object.entries(conversation)) inputs.push(...stringsOf(value, path));
    const markers = new Markers(this.spellings, inputs);
    // Where the final message ends is found again by a second character that nothing else contains.
    const end = continues ? new Markers([], [...inputs, markers.marker]).marker : '';

    const environment = globals();
    for (const [name, token] of this.tokens) environment.setVariable(name, string(token));
    for (const [name, value] of conversation.variables) {
      environment.setVariable(name, guardedValue(value, markers, `chatTemplateKwargs.${name}`));
    }
    if (continues) this.openFinalMessage(conversation.messages, end);
    const values = conversation.messages.map((message, i) => guardedMessage(message, markers, `messages[${i}]`));
    environment.setVariable('messages', array(values));
    environment.setVariable('tools', conversation.tools ? guardedValue(conversation.tools, markers, 'tools') : nothing());
    environment.setVariable('add_generation_prompt', boolean(opensTurn));

    const marked = this.run(text, markers, environment);
    if (!continues) return { marked, markers };
    const cut = marked.lastIndexOf(end);
    if (cut < 0) {
      throw new InvalidArgumentError('continueFinalMessage', 'continueFinalMessage: the template leaves the final message out');
    }
    return { marked: marked.slice(0, cut).replaceAll(end, ''), markers };
  }

  private openFinalMessage(messages: Map<string, unknown>[], end: string): void {
    const last = messages.at(-1);
    const content = last?.get('content');
    if (last?.get('role') !== 'assistant' || typeof content !== 'string') {
      const message = 'continueFinalMessage: expected the last message to be an assistant message with text';
      throw new InvalidArgumentError('continueFinalMessage', message);
    }
    last.set('content', content + end);
  }

  private run(text: string, markers: Markers, environment: Environment): string {
    try {
      const program = this.compiled.get(text) ?? parse(tokenize(text, { lstrip_blocks: true, trim_blocks: true }));
      this.compiled.set(text, program);
      return String(new ChatInterpreter(markers, environment).run(program).value);
    } catch (cause) {
      if (cause instanceof EngineError) throw cause;
      const found = cause instanceof Error ? cause.message : String(cause);
      if (cause instanceof TemplateRefusal) {
        throw new InvalidArgumentError('messages', `the chat template refuses this conversation: ${found}`, '', { cause });
      }
      const message = `the chat template (${this.source}) failed: ${found}`;
      if (this.source === 'option') throw new InvalidArgumentError('chatTemplate', message, '', { cause });
      throw new CheckpointError(message, 'pass a template of your own as chatTemplate', { cause });
    }
  }
}

/** What every template may call, as transformers defines it. */
function globals(): Environment {
  const environment = new Environment();
  for (const [name, value] of [
    ['true', true],
    ['false', false],
    ['none', null],
  ] as const) {
    environment.set(name, value);
    environment.set(name.charAt(0).toUpperCase() + name.slice(1), value);
  }
  environment.set('raise_exception', (message: unknown) => {
    throw new TemplateRefusal(String(message));
  });
  environment.set('range', range);
  environment.set('strftime_now', (format: unknown) => strftime(new Date(), String(format)));
  return environment;
}

const MAX_RANGE = 100_000;

function range(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= MAX_RANGE)) throw new Error(`range() of ${length} numbers: at most ${MAX_RANGE} are allowed`);
  return Array.from({ length }, (_, i) => start + i * step);
}

function strftime(date: Date, format: string): string {
  const part = (options: Intl.DateTimeFormatOptions) => new Intl.DateTimeFormat('en-US', options).format(date);
  const digits = (value: number) => String(value).padStart(2, '0');
  const fields: Record<string, () => string> = {
    '%Y': () => String(date.getFullYear()),
    '%m': () => digits(date.getMonth() + 1),
    '%d': () => digits(date.getDate()),
    '%H': () => digits(date.getHours()),
    '%M': () => digits(date.getMinutes()),
    '%S': () => digits(date.getSeconds()),
    '%b': () => part({ month: 'short' }),
    '%B': () => part({ month: 'long' }),
    '%a': () => part({ weekday: 'short' }),
    '%A': () => part({ weekday: 'long' }),
    '%%': () => '%',
  };
  return format.replace(/%[A-Za-z%]/g, (field) => fields[field]?.() ?? field);
}
