/**
 * One streamed request to an OpenAI-compatible server, with the times at which its answer arrived. Node's own http with
 * kept-alive connections and no limit on their number: the client must not be what is measured.
 */
import { type ClientRequest, Agent as HttpAgent, request as httpRequest, type IncomingMessage } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import type { BenchRequest } from './dataset.js';
import { SseParser } from './sse.js';

export type Api = 'chat' | 'completions';

export interface Target {
  /** Where the server is, without a slash at the end: http://127.0.0.1:8000 */
  baseUrl: string;
  /** The path of the endpoint: /v1/completions */
  endpoint: string;
  api: Api;
  model: string;
  headers: Record<string, string>;
  /** Fields beside prompt, model, max_tokens and stream. */
  body: Record<string, unknown>;
  /** Accepts a certificate that cannot be verified. */
  insecure: boolean;
}

/** Times in ms of performance.now(). */
export interface Outcome {
  error: string | undefined;
  /** Due by the arrival process; later than sent only where a limit on concurrency held it back. */
  dueAt: number;
  sentAt: number;
  /** Of every chunk with text, reasoning or a tool call in it. */
  chunkTimes: number[];
  endedAt: number;
  promptTokens: number | undefined;
  /** From the usage the server sent. */
  outputTokens: number | undefined;
  text: string;
}

/** Error bodies longer than this are cut. */
const ERROR_LIMIT = 2000;

export class BenchClient {
  private readonly agent: HttpAgent;
  readonly url: URL;

  constructor(private readonly target: Target) {
    this.url = new URL(target.baseUrl + target.endpoint);
    const options = { keepAlive: true, maxSockets: Infinity };
    this.agent =
      this.url.protocol === 'https:'
        ? new HttpsAgent({ ...options, rejectUnauthorized: !target.insecure })
        : new HttpAgent(options);
  }

  /** Never rejects: what went wrong is in the outcome. */
  async send(request: BenchRequest, signal?: AbortSignal, dueAt = performance.now()): Promise<Outcome> {
    const outcome: Outcome = {
      error: undefined,
      dueAt,
      sentAt: performance.now(),
      chunkTimes: [],
      endedAt: 0,
      promptTokens: request.promptTokens,
      outputTokens: undefined,
      text: '',
    };
    try {
      const response = await this.open('POST', this.url, JSON.stringify(this.bodyOf(request)), signal);
      if (response.statusCode !== 200) throw new Error(`status ${response.statusCode}: ${await wholeText(response)}`);
      await readStream(response, outcome);
    } catch (error) {
      outcome.error = error instanceof Error ? error.message : String(error);
    }
    if (outcome.endedAt === 0) outcome.endedAt = performance.now();
    return outcome;
  }

  /** A page of the same server. */
  async page(path: string, signal?: AbortSignal): Promise<{ status: number | undefined; text: string }> {
    const response = await this.open('GET', new URL(this.target.baseUrl + path), undefined, signal);
    return { status: response.statusCode, text: await wholeText(response) };
  }

  close(): void {
    this.agent.destroy();
  }

  private bodyOf({ prompt, outputTokens }: BenchRequest): Record<string, unknown> {
    const { api, model, body } = this.target;
    return {
      ...(api === 'chat' ? { messages: [{ role: 'user', content: prompt }] } : { prompt }),
      model,
      max_tokens: outputTokens,
      stream: true,
      stream_options: { include_usage: true },
      ...body,
    };
  }

  private async open(method: string, url: URL, body: string | undefined, signal?: AbortSignal): Promise<IncomingMessage> {
    for (;;) {
      let sent: ClientRequest | undefined;
      try {
        return await new Promise<IncomingMessage>((resolve, reject) => {
          const start = url.protocol === 'https:' ? httpsRequest : httpRequest;
          sent = start(url, {
            method,
            agent: this.agent,
            headers: { ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...this.target.headers },
            ...(signal === undefined ? {} : { signal }),
          });
          sent.on('response', resolve).on('error', reject).end(body);
        });
      } catch (error) {
        // The server may close an idle connection just as it is used again: that request was never read.
        const closedIdle = sent?.reusedSocket && error instanceof Error && 'code' in error && error.code === 'ECONNRESET';
        if (!closedIdle) throw error;
      }
    }
  }
}

async function wholeText(response: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of response) parts.push(part as Buffer);
  return Buffer.concat(parts).toString();
}

async function readStream(response: IncomingMessage, outcome: Outcome): Promise<void> {
  const parser = new SseParser();
  let finished = false;
  await new Promise<void>((resolve, reject) => {
    // Events instead of iteration: a promise less for each chunk of each stream.
    response.on('data', (bytes: Uint8Array) => {
      const now = performance.now();
      try {
        for (const data of parser.push(bytes)) {
          if (data !== '[DONE]') takeEvent(JSON.parse(data) as Event, now, outcome);
          else finished = true;
        }
      } catch (error) {
        response.destroy(error instanceof Error ? error : new Error(String(error)));
      }
    });
    response.on('end', resolve).on('error', reject);
  });
  if (!finished) throw new Error('the stream ended without data: [DONE]');
}

/** The fields of a chunk that are read, of either endpoint; a server may send null for any of them. */
interface Event {
  error?: { message?: string } | null;
  choices?: { text?: string | null; delta?: Delta | null; finish_reason?: string | null }[] | null;
  usage?: { prompt_tokens?: number; completion_tokens?: number } | null;
}

interface Delta {
  content?: string | null;
  reasoning?: string | null;
  reasoning_content?: string | null;
  tool_calls?: unknown[] | null;
}

function takeEvent(event: Event, now: number, outcome: Outcome): void {
  if (event.error) throw new Error(`error in the stream: ${event.error.message?.slice(0, ERROR_LIMIT)}`);
  if (event.usage) {
    outcome.promptTokens = event.usage.prompt_tokens ?? outcome.promptTokens;
    outcome.outputTokens = event.usage.completion_tokens ?? outcome.outputTokens;
  }
  const choice = event.choices?.[0];
  if (choice === undefined) return;
  const { delta } = choice;
  const text = choice.text ?? delta?.content ?? '';
  const reasoning = delta?.reasoning ?? delta?.reasoning_content ?? '';
  outcome.text += reasoning + text;
  outcome.endedAt = now;
  if (text !== '' || reasoning !== '' || (delta?.tool_calls?.length ?? 0) > 0) outcome.chunkTimes.push(now);
}
