/**
 * A streamed answer on the wire, as server-sent events. Written no faster than the client reads; while a request waits in
 * the queue, comment lines show proxies that it lives.
 */
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';
import type { OpenAIError } from '../openai/index.js';

export class EventStream {
  private readonly raw: ServerResponse;
  private timer: NodeJS.Timeout | undefined;

  constructor(
    private readonly reply: FastifyReply,
    private readonly toError: (error: unknown) => OpenAIError,
  ) {
    this.raw = reply.raw;
  }

  /** Comments go out until the first event does; with the first comment the status is settled as 200. */
  keepAlive(ms: number): void {
    this.timer = setInterval(() => {
      this.open();
      this.raw.write(': waiting\n\n');
    }, ms).unref();
  }

  /** No more comments; false when the status is still open. */
  settle(): boolean {
    clearInterval(this.timer);
    return this.raw.headersSent;
  }

  /** Writes a whole answer. `write` turns an item into its event. */
  async send<T>(items: AsyncIterable<T>, write: (item: T) => string, end: string): Promise<OpenAIError | undefined> {
    this.settle();
    this.open();
    let failure: OpenAIError | undefined;
    try {
      for await (const item of items) if (!this.raw.write(write(item))) await this.drained();
    } catch (error) {
      failure = this.toError(error);
      this.raw.write(dataLine(failure.body));
    }
    this.raw.end(end);
    return failure;
  }

  /** An error after the status had gone out. */
  fail(error: OpenAIError, end: string): void {
    this.raw.end(dataLine(error.body) + end);
  }

  private open(): void {
    if (this.raw.headersSent) return;
    this.reply.hijack();
    this.raw.writeHead(200, {
      ...(this.reply.getHeaders() as Record<string, string>),
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
    });
  }

  /** Until the client has read what it was sent, or is gone. */
  private async drained(): Promise<void> {
    if (this.raw.destroyed) return;
    const left = new AbortController();
    const { signal } = left;
    try {
      await Promise.race([once(this.raw, 'drain', { signal }), once(this.raw, 'close', { signal })]);
    } finally {
      left.abort();
    }
  }
}

export function dataLine(item: unknown): string {
  return `data: ${JSON.stringify(item)}\n\n`;
}

export const DONE = 'data: [DONE]\n\n';
