/**
 * Errors in the shape of the OpenAI API: `{ error: { message, type, param, code } }` with its HTTP status. Messages name
 * fields, never what a prompt or an answer says.
 */
import { EngineError, InvalidArgumentError } from '../errors.js';

export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}

export class OpenAIError extends Error {
  readonly status: number;
  readonly body: ErrorBody;
  /** Seconds after which another try makes sense: the Retry-After header. */
  readonly retryAfter: number | undefined;

  constructor(status: number, error: Partial<ErrorBody['error']> & { message: string }, options: ErrorOptions & Retry = {}) {
    super(error.message, options);
    this.name = 'OpenAIError';
    this.status = status;
    const { message, type = typeOf(status), param = null, code = null } = error;
    this.body = { error: { message, type, param, code } };
    this.retryAfter = options.retryAfter;
  }
}

interface Retry {
  retryAfter?: number;
}

function typeOf(status: number): string {
  if (status === 401) return 'authentication_error';
  if (status === 403) return 'permission_error';
  if (status === 429) return 'rate_limit_error';
  if (status === 503) return 'unavailable_error';
  return status >= 500 ? 'server_error' : 'invalid_request_error';
}

/** A field of a request that cannot be taken. */
export function badRequest(param: string | null, message: string, code: string | null = null): OpenAIError {
  return new OpenAIError(400, { message, param, code });
}

/** Status of a request whose client went away; nobody reads it, logs and metrics do. */
export const CLIENT_CLOSED = 499;

const QUEUE_RETRY_SECONDS = 1;
const UNAVAILABLE_RETRY_SECONDS = 5;

/**
 * Whatever a request ended with, as an error of the API. `wireNames` says what the caller calls the library's arguments
 * where that is more than another spelling.
 */
export function toOpenAIError(error: unknown, wireNames: ReadonlyMap<string, string> = new Map()): OpenAIError {
  if (error instanceof OpenAIError) return error;
  if (error instanceof InvalidArgumentError) return fromArgument(error, wireNames);
  const code = error instanceof EngineError ? error.code : 'ERR_INTERNAL';
  const because = { cause: error };
  switch (code as string) {
    case 'ERR_BUSY': {
      const message = 'the queue of waiting requests is full: try again later';
      return new OpenAIError(429, { message, code: 'queue_full' }, { ...because, retryAfter: QUEUE_RETRY_SECONDS });
    }
    case 'ERR_ABORTED':
      return new OpenAIError(CLIENT_CLOSED, { message: 'the request was cancelled', code: 'cancelled' }, because);
    case 'ERR_DISPOSED': {
      const message = 'the server is shutting down: try again later';
      const options = { ...because, retryAfter: UNAVAILABLE_RETRY_SECONDS };
      return new OpenAIError(503, { message, code: 'shutting_down' }, options);
    }
    case 'ERR_DEVICE': {
      const message = 'the device of the model failed: the server has to be started again';
      return new OpenAIError(503, { message, code: 'device_failed' }, because);
    }
    default:
      // What went wrong inside may quote a prompt, so the message says only which kind it was.
      return new OpenAIError(500, { message: `the request failed inside the server (${code})`, code }, because);
  }
}

function fromArgument(error: InvalidArgumentError, wireNames: ReadonlyMap<string, string>): OpenAIError {
  const { argument, message, hint } = error;
  // A template's own words about a conversation may repeat it.
  if (message.startsWith('the chat template')) {
    const param = argument === 'chatTemplate' ? 'chat_template' : 'messages';
    return new OpenAIError(400, { message: 'the chat template cannot render this conversation', param }, { cause: error });
  }
  const name = /^\w*/.exec(argument)?.[0] ?? '';
  // A form is written in one field, whatever the library calls its parts.
  const rest = name === 'structured' ? '' : argument.slice(name.length);
  const wire = (wireNames.get(name) ?? snakeCase(name)) + rest;
  const told = message.startsWith(argument) ? wire + message.slice(argument.length) : message;
  const text = hint === '' ? told : `${told} (${hint})`;
  return new OpenAIError(400, { message: text, param: wire === '' ? null : wire }, { cause: error });
}

export function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
