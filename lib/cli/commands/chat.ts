/** sigmoe chat: a conversation of many turns. Nothing of it is written to disk. */
import { Command } from 'commander';
import type { Message, Model } from '../../index.js';
import { noteStats, printAnswer } from '../answer.js';
import { describeFailure } from '../failure.js';
import { addEngineFlags, addSamplingFlags, type EngineFlags, type SamplingFlags, samplingOptions } from '../flags.js';
import { interruptible } from '../interrupt.js';
import { LineReader } from '../line_reader.js';
import { loadModel } from '../load.js';
import { note, outputClosed } from '../terminal.js';

const DEFAULT_SYSTEM = 'You are AntAngelMed, a helpful medical assistant.';

const HELP = `/reset          forget the conversation
/system [text]  show the system message, or replace it and forget the conversation
/help           this list
/exit           leave (also Ctrl-D; Ctrl-C stops an answer, and twice at the prompt leaves)`;

interface Flags extends EngineFlags, SamplingFlags {
  system: string;
  stats?: boolean;
}

export function chatCommand(): Command {
  const command = new Command('chat')
    .summary('hold a conversation')
    .description('Holds a conversation: one line, one message. Type /help for its commands.')
    .argument('<model>', 'model folder, or owner/name of a hub')
    .option('-s, --system <text>', 'system message', DEFAULT_SYSTEM)
    .option('--stats', 'end every answer with a line of figures on standard error')
    .addHelpText('after', '\nExample:\n  sigmoe chat models/nano --system "You answer briefly."');
  return addSamplingFlags(addEngineFlags(command)).action(chat);
}

async function chat(path: string, flags: Flags): Promise<void> {
  await using model = await interruptible((signal) => loadModel(path, flags, signal));
  const conversation = new Conversation(flags.system);
  using reader = new LineReader('> ');
  if (reader.interactive) note('one line, one message; /help lists the commands');
  for (;;) {
    const line = await reader.next();
    if (line === undefined) return;
    const text = line.trim();
    if (text === '') continue;
    if (text === '/exit') return;
    if (text.startsWith('/')) obey(text, conversation);
    else await answer(model, conversation, text, flags);
    outputClosed.throwIfAborted();
  }
}

class Conversation {
  system: string;
  turns: Message[] = [];

  constructor(system: string) {
    this.system = system;
  }

  /** The conversation so far and one more message of the user. */
  with(content: string): Message[] {
    const system: Message[] = this.system === '' ? [] : [{ role: 'system', content: this.system }];
    return [...system, ...this.turns, { role: 'user', content }];
  }
}

function obey(text: string, conversation: Conversation): void {
  const [name = '', ...words] = text.split(' ');
  const argument = words.join(' ').trim();
  if (name === '/reset') {
    conversation.turns = [];
    note('conversation forgotten');
  } else if (name === '/system' && argument === '') {
    note(conversation.system === '' ? 'no system message' : conversation.system);
  } else if (name === '/system') {
    conversation.system = argument;
    conversation.turns = [];
    note('system message replaced, conversation forgotten');
  } else if (name === '/help') {
    note(HELP);
  } else {
    note(`no command ${name}; /help lists them`);
  }
}

// One turn. Ctrl-C ends the answer and keeps what it had come to; a failed turn leaves no trace in the conversation.
async function answer(model: Model, conversation: Conversation, content: string, flags: Flags): Promise<void> {
  try {
    const result = await interruptible((signal) => {
      const generation = model.generate({ messages: conversation.with(content), ...samplingOptions(flags) });
      signal.addEventListener('abort', () => generation.stop(), { once: true });
      return printAnswer(generation);
    });
    conversation.turns.push({ role: 'user', content }, { role: 'assistant', content: result.text });
    const asked = flags.maxTokens ?? Number.POSITIVE_INFINITY;
    if (result.finishReason === 'length' && result.usage.completionTokens < asked)
      note('(the context is full; /reset makes room)');
    if (flags.stats) noteStats(result, model.info);
  } catch (error) {
    outputClosed.throwIfAborted();
    note(`sigmoe: ${describeFailure(error).line}; the message was not kept, /reset forgets the conversation`);
  }
}
