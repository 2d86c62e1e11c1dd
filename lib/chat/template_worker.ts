/** The thread of template_thread.ts: renders one conversation with one template, answers, and is done. */
import { parentPort, workerData } from 'node:worker_threads';
import { InvalidArgumentError } from '../errors.js';
import type { ChatOptions, Message } from '../types.js';
import { ChatTemplate } from './template.js';

export interface RenderJob {
  template: string;
  spellings: readonly string[];
  tokens: ReadonlyMap<string, string>;
  messages: readonly Message[] | string;
  options: ChatOptions;
}

export type RenderReply = { marked: string; marker: string } | { argument: string; message: string };

const { template, spellings, tokens, messages, options } = workerData as RenderJob;
let reply: RenderReply;
try {
  const { marked, markers } = new ChatTemplate({ source: 'option', text: template }, spellings, tokens).render(
    messages,
    options,
  );
  reply = { marked, marker: markers.marker };
} catch (error) {
  const argument = error instanceof InvalidArgumentError ? error.argument : 'chatTemplate';
  reply = { argument, message: error instanceof Error ? error.message : String(error) };
}
parentPort?.postMessage(reply);
