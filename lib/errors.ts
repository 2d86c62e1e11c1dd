/**
 * The errors a caller can meet. One class per kind of cause, each with a code of a closed set, which but for downloads is that of
 * csrc/backend/error.h: the message says what was asked and what was found in one line, the hint says what to try next.
 */

import type { GenerateResult } from './types.js';

export type ErrorCode =
  | 'ERR_INVALID_ARGUMENT'
  | 'ERR_NOT_FOUND'
  | 'ERR_IO'
  | 'ERR_FILE_CHANGED'
  | 'ERR_BAD_CHECKPOINT'
  | 'ERR_UNSUPPORTED'
  | 'ERR_BUSY'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_ABORTED'
  | 'ERR_DISPOSED'
  | 'ERR_DEVICE'
  | 'ERR_DOWNLOAD'
  | 'ERR_INTERNAL';

/** Base of every error sigmoe throws. `message` is one line; `hint` may be empty. */
export class EngineError extends Error {
  readonly code: ErrorCode;
  readonly hint: string;

  constructor(code: ErrorCode, message: string, hint = '', options?: ErrorOptions) {
    super(oneLine(message), options);
    this.name = new.target.name;
    this.code = code;
    this.hint = oneLine(hint);
  }
}

/** The caller passed something no model could accept. `argument` names it, such as `temperature` or `messages[2].content`. */
export class InvalidArgumentError extends EngineError {
  readonly argument: string;

  constructor(argument: string, message: string, hint = '', options?: ErrorOptions) {
    super('ERR_INVALID_ARGUMENT', message, hint, options);
    this.argument = argument;
  }
}

/** A file, tensor or device that was named does not exist. */
export class NotFoundError extends EngineError {
  constructor(message: string, hint = '', options?: ErrorOptions) {
    super('ERR_NOT_FOUND', message, hint, options);
  }
}

/** The operating system refused a read. */
export class IoError extends EngineError {
  constructor(message: string, hint = '', options?: ErrorOptions) {
    super('ERR_IO', message, hint, options);
  }
}

/** A file of the model folder is not what its format says, or changed while it was read (`ERR_FILE_CHANGED`). */
export class CheckpointError extends EngineError {
  constructor(message: string, hint = '', options?: ErrorOptions, code: ErrorCode = 'ERR_BAD_CHECKPOINT') {
    super(code, message, hint, options);
  }
}

/** Well formed, but not something this build or device runs. */
export class UnsupportedError extends EngineError {
  constructor(message: string, hint = '', options?: ErrorOptions) {
    super('ERR_UNSUPPORTED', message, hint, options);
  }
}

/** The queue of requests is full: try again later. */
export class BusyError extends EngineError {
  constructor(message: string, hint = '', options?: ErrorOptions) {
    super('ERR_BUSY', message, hint, options);
  }
}

/** Memory ran out; the message says what was asked and what was free, the hint which option to lower. */
export class OutOfMemoryError extends EngineError {
  constructor(message: string, hint = '', options?: ErrorOptions) {
    super('ERR_OUT_OF_MEMORY', message, hint, options);
  }
}

/** The caller's signal ended the work. `name` is `AbortError`, as the platform's own; `cause` is the signal's reason. */
export class AbortError extends EngineError {
  /** What a generation had produced when it was aborted; of a batch, the results that were complete, holes between them. */
  readonly partial: GenerateResult | (GenerateResult | undefined)[] | undefined;

  constructor(message: string, partial?: AbortError['partial'], options?: ErrorOptions) {
    super('ERR_ABORTED', message, '', options);
    this.partial = partial;
  }
}

/** The model was disposed before or during the call. */
export class DisposedError extends EngineError {
  constructor(message = 'the model was disposed', hint = 'load it again with Model.load', options?: ErrorOptions) {
    super('ERR_DISPOSED', message, hint, options);
  }
}

/** The device failed. The model is broken from here on: dispose it. */
export class DeviceError extends EngineError {
  constructor(message: string, hint = '', options?: ErrorOptions) {
    super('ERR_DEVICE', message, hint, options);
  }
}

/** A hub could not be reached, refused, or sent something other than it had listed. */
export class DownloadError extends EngineError {
  /** Of the answer that ended it, where there was one. */
  readonly status: number | undefined;

  constructor(message: string, hint = '', status?: number, options?: ErrorOptions) {
    super('ERR_DOWNLOAD', message, hint, options);
    this.status = status;
  }
}

/** A bug in sigmoe. */
export class InternalError extends EngineError {
  constructor(message: string, hint = '', options?: ErrorOptions) {
    super('ERR_INTERNAL', message, hint, options);
  }
}

/** Builds the subclass that a native code stands for: the one place where codes become classes. */
export function errorFromCode(code: string, message: string, hint: string, cause?: unknown): EngineError {
  const options = cause === undefined ? undefined : { cause };
  switch (code) {
    case 'ERR_INVALID_ARGUMENT':
      return new InvalidArgumentError('', message, hint, options);
    case 'ERR_NOT_FOUND':
      return new NotFoundError(message, hint, options);
    case 'ERR_IO':
      return new IoError(message, hint, options);
    case 'ERR_FILE_CHANGED':
    case 'ERR_BAD_CHECKPOINT':
      return new CheckpointError(message, hint, options, code);
    case 'ERR_UNSUPPORTED':
      return new UnsupportedError(message, hint, options);
    case 'ERR_BUSY':
      return new BusyError(message, hint, options);
    case 'ERR_OUT_OF_MEMORY':
      return new OutOfMemoryError(message, hint, options);
    case 'ERR_ABORTED':
      return new AbortError(message, undefined, options);
    case 'ERR_DISPOSED':
      return new DisposedError(message, hint, options);
    case 'ERR_DEVICE':
      return new DeviceError(message, hint, options);
    default:
      return new InternalError(message, hint, options);
  }
}

/** Converts whatever a native call threw; an EngineError passes through unchanged. */
export function toEngineError(error: unknown): EngineError {
  if (error instanceof EngineError) return error;
  if (!(error instanceof Error)) return new InternalError(`the native addon threw ${String(error)}`);
  const { code, hint } = error as Error & { code?: unknown; hint?: unknown };
  return errorFromCode(typeof code === 'string' ? code : '', error.message, typeof hint === 'string' ? hint : '', error);
}

function oneLine(text: string): string {
  return text.replace(/\s*[\r\n]+\s*/g, ' ');
}
