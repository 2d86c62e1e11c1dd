/**
 * Grows the output items of a response: reasoning, message, calls. One item is open at a time; each step tells the events
 * it amounts to, which a whole answer has no use for.
 */
import type { Chunk, GenerateResult } from '../types.js';
import { CallFinder } from './call_finder.js';
import { chatLogprobs, newId, tokenName } from './parts.js';
import type { ResponsePlan } from './responses_request.js';
import type { OutputEvent, OutputItem, OutputLogprob, OutputText, ReasoningText } from './responses_wire.js';
import type { ToolCallDelta } from './wire.js';

export class ResponseOutput {
  readonly items: OutputItem[] = [];
  private readonly calls: CallFinder;
  private readonly name = tokenName(false);
  private events: OutputEvent[] = [];
  /** Of tokens whose text has not come out yet. */
  private logprobs: OutputLogprob[] = [];

  constructor(private readonly plan: ResponsePlan) {
    this.calls = new CallFinder(plan.findsCalls, plan.oneCall);
  }

  write({ text, reasoning, logprobs }: Chunk): OutputEvent[] {
    if (this.plan.logprobs) this.logprobs.push(...chatLogprobs(logprobs ?? [], this.name).content);
    if (reasoning !== '') this.addReasoning(reasoning);
    const found = this.calls.push(text);
    if (found.text !== '') this.addText(found.text);
    for (const call of found.calls) this.addCall(call);
    return this.takeEvents();
  }

  close(result: GenerateResult): OutputEvent[] {
    const found = this.calls.flush();
    if (found.text !== '' || this.items.length === 0) this.addText(found.text);
    for (const call of found.calls) this.addCall(call);
    this.closeItem(result.finishReason === 'stop' ? 'completed' : 'incomplete');
    return this.takeEvents();
  }

  private addReasoning(delta: string): void {
    let item = this.items.at(-1);
    if (item?.type !== 'reasoning' || item.status !== 'in_progress') {
      item = this.openItem({ type: 'reasoning', id: newId('rs_'), status: 'in_progress', summary: [], content: [] });
    }
    this.logprobs = [];
    const part = item.content[0] ?? this.openPart(item, { type: 'reasoning_text', text: '' });
    part.text += delta;
    this.events.push({ type: 'response.reasoning_text.delta', ...this.at(item), content_index: 0, delta });
  }

  private addText(delta: string): void {
    let item = this.items.at(-1);
    if (item?.type !== 'message' || item.status !== 'in_progress') {
      const id = newId('msg_');
      item = this.openItem({ type: 'message', id, status: 'in_progress', role: 'assistant', content: [] });
    }
    const part = item.content[0] ?? this.openPart(item, { type: 'output_text', text: '', annotations: [], logprobs: [] });
    const { logprobs } = this;
    this.logprobs = [];
    part.text += delta;
    part.logprobs.push(...logprobs);
    if (delta !== '')
      this.events.push({ type: 'response.output_text.delta', ...this.at(item), content_index: 0, delta, logprobs });
  }

  private addCall({ id, function: { name, arguments: delta = '' } }: ToolCallDelta): void {
    let item = this.items.at(-1);
    if (id !== undefined || item?.type !== 'function_call') {
      const fields = { call_id: id ?? '', name: name ?? '', arguments: '' };
      item = this.openItem({ type: 'function_call', id: newId('fc_'), status: 'in_progress', ...fields });
    }
    this.logprobs = [];
    item.arguments += delta;
    if (delta !== '') this.events.push({ type: 'response.function_call_arguments.delta', ...this.at(item), delta });
  }

  private openItem<T extends OutputItem>(item: T): T {
    this.closeItem('completed');
    this.items.push(item);
    this.events.push({ type: 'response.output_item.added', output_index: this.items.length - 1, item: structuredClone(item) });
    return item;
  }

  private openPart<T extends OutputText | ReasoningText>(item: OutputItem & { content: T[] }, part: T): T {
    item.content.push(part);
    this.events.push({ type: 'response.content_part.added', ...this.at(item), content_index: 0, part: structuredClone(part) });
    return part;
  }

  private closeItem(status: 'completed' | 'incomplete'): void {
    const item = this.items.at(-1);
    if (item?.status !== 'in_progress') return;
    item.status = status;
    const at = this.at(item);
    if (item.type === 'function_call') {
      const { name, arguments: text } = item;
      this.events.push({ type: 'response.function_call_arguments.done', ...at, name, arguments: text });
    } else {
      for (const part of item.content) this.closePart(at, part);
    }
    this.events.push({ type: 'response.output_item.done', output_index: at.output_index, item: structuredClone(item) });
  }

  private closePart(at: { item_id: string; output_index: number }, part: OutputText | ReasoningText): void {
    const { text } = part;
    if (part.type === 'output_text') {
      this.events.push({ type: 'response.output_text.done', ...at, content_index: 0, text, logprobs: part.logprobs });
    } else this.events.push({ type: 'response.reasoning_text.done', ...at, content_index: 0, text });
    this.events.push({ type: 'response.content_part.done', ...at, content_index: 0, part: structuredClone(part) });
  }

  private at(item: OutputItem): { item_id: string; output_index: number } {
    return { item_id: item.id, output_index: this.items.length - 1 };
  }

  private takeEvents(): OutputEvent[] {
    const { events } = this;
    this.events = [];
    return events;
  }
}
