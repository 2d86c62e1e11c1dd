/** A process of several that does not lead: it holds a part of the model and computes what the leader says. */

import { checkCallback } from './checks.js';
import { AbortError, InvalidArgumentError } from './errors.js';
import { readLoadOptions } from './load_options.js';
import { checkPath, folderOf } from './model_source.js';
import { addon, runCancellable } from './native_work.js';
import type { FollowOptions } from './types.js';

/**
 * Loads this node's part of the model and follows the leader. Resolves when the leader has ended; rejects when any node of the
 * world fails, and with AbortError when `signal` is aborted, which fails the world for the others.
 *
 *     await follow('models/nano', { tensorParallelSize: 2, node: { rank: 1, count: 2 } });
 */
export async function follow(model: string, options: FollowOptions): Promise<void> {
  checkPath(model);
  const { onReady, ...load } = options;
  const native = readLoadOptions(load);
  checkCallback('onReady', onReady);
  if (native.nodeRank === 0) {
    throw new InvalidArgumentError('node', 'node: expected a rank above 0, found 0', 'rank 0 leads: load it with Model.load');
  }
  const { signal, onProgress } = load;
  const aborted = (by: AbortSignal) => new AbortError('this node was told to end', undefined, { cause: by.reason });
  if (signal?.aborted) throw aborted(signal);
  const path = await folderOf(model, load);
  if (load.draft !== undefined) native.draft = await folderOf(load.draft, { ...load, revision: undefined });
  await runCancellable(
    (cancel) => {
      const guarded = (call: () => void) => {
        try {
          call();
        } catch (error) {
          cancel(error);
        }
      };
      return addon().follow(
        path,
        native,
        (bytesDone, bytesTotal) => guarded(() => onProgress?.({ bytesDone, bytesTotal })),
        () => guarded(() => onReady?.()),
      );
    },
    signal,
    aborted,
  );
}
