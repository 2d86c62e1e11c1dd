/** What goes wrong on the way to a hub, told apart by what to do about it: try again, or tell whoever asked. */
import { AbortError, DownloadError, EngineError, IoError, NotFoundError } from '../errors.js';
import type { Source } from './environment.js';

/** Worth another try: a cut connection, a busy server, a length that does not fit. */
export class Passing extends Error {
  constructor(
    message: string,
    /** What the server asked to wait. */
    readonly waitMs?: number,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** An answer that another try would not change. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    /** The hub's own word for it: GatedRepo, RevisionNotFound. */
    readonly reason: string,
  ) {
    super(`status ${status}`);
  }
}

export interface Asked {
  id: string;
  revision: string;
  source: Source;
  /** Address of the hub. */
  endpoint: string;
  hasToken: boolean;
}

/** The error a caller gets. Names no address beyond the hub's own: those of stores carry signatures. */
export function explain(error: unknown, asked: Asked, signal: AbortSignal | undefined): EngineError {
  const { id, endpoint } = asked;
  if (signal?.aborted) return new AbortError(`the download of ${id} was aborted`, undefined, { cause: signal.reason });
  if (error instanceof EngineError) return error;
  if (error instanceof Refused) return explainRefusal(error, asked);
  const cause = { cause: error };
  if (error instanceof Passing) {
    return new DownloadError(`${id} from ${endpoint}: ${error.message}`, 'what arrived is kept: try again', undefined, cause);
  }
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') {
    return new IoError(
      `the cache cannot be written: ${message}`,
      'set HF_HOME (or MODELSCOPE_CACHE) to a folder of yours',
      cause,
    );
  }
  return new IoError(`${id}: ${message}`, '', cause);
}

function explainRefusal({ status, reason }: Refused, asked: Asked): EngineError {
  const { id, revision, endpoint, hasToken } = asked;
  const page = asked.source === 'huggingface' ? `${endpoint}/${id}` : `${endpoint}/models/${id}`;
  if (status === 404 && reason === 'RevisionNotFound') {
    return new NotFoundError(`${id} at ${endpoint}: there is no revision ${revision}`, `see ${page}`);
  }
  if (status === 404 && reason === 'EntryNotFound') {
    return new NotFoundError(`${id}@${revision} at ${endpoint}: a file that it lists is not there (404)`, `see ${page}`);
  }
  if (status === 404) {
    return new NotFoundError(`${id}@${revision} at ${endpoint}: there is no such model or revision (404)`, `see ${page}`);
  }
  if (status === 401 || status === 403) {
    const token = asked.source === 'huggingface' ? 'HF_TOKEN' : 'MODELSCOPE_API_TOKEN';
    const gated = reason === 'GatedRepo';
    const what = gated ? 'it is gated' : status === 401 ? 'it does not exist, is private, or is gated' : 'access was refused';
    const hint = hasToken
      ? `the token of ${token} is not enough: accept the terms at ${page}, or take a token that may read it`
      : `accept the terms at ${page}, then set ${token} to a token of yours`;
    return new DownloadError(`${id} at ${endpoint}: ${what} (${status})`, hint, status);
  }
  return new DownloadError(`${id} at ${endpoint}: the server answered ${status}`, `see ${page}`, status);
}
