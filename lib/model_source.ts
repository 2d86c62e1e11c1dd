/** Where a model comes from: the path or id that a caller names, and the folder it stands for. */
import { AbortError, InvalidArgumentError } from './errors.js';
import { resolveModel } from './hub/index.js';
import type { LoadOptions } from './types.js';

export function checkPath(path: unknown): void {
  if (typeof path === 'string' && path !== '' && !path.includes('\0')) return;
  throw new InvalidArgumentError(
    'path',
    `path: expected the path of a model folder or the id of a model, found ${JSON.stringify(path) ?? typeof path}`,
  );
}

/** The folder to load from, downloaded if that was asked. */
export function folderOf(model: string, { download, revision, source, signal, onProgress }: LoadOptions): Promise<string> {
  return resolveModel(model, {
    download,
    revision,
    source,
    signal,
    onProgress: onProgress && (({ bytesDone, bytesTotal }) => onProgress({ stage: 'download', bytesDone, bytesTotal })),
  });
}

export function loadAborted(signal: AbortSignal): AbortError {
  return new AbortError('the load was aborted', undefined, { cause: signal.reason });
}
