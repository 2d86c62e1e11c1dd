/** Work of the addon as the rest of the library sees it: its errors are EngineErrors, and what takes long can be cancelled. */
import { type AbortError, toEngineError } from './errors.js';
import { type NativeAddon, native } from './native.js';

export function addon(): NativeAddon {
  return guarded(native);
}

/** What a call into the addon throws, as an EngineError. */
export function guarded<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw toEngineError(error);
  }
}

/** Runs native work that can be cancelled, by its signal or by a callback that threw. */
export async function runCancellable<T>(
  start: (cancel: (reason: unknown) => void) => { promise: Promise<T>; cancel(): void },
  signal: AbortSignal | undefined,
  aborted: (signal: AbortSignal) => AbortError,
): Promise<T> {
  let thrown: { error: unknown } | undefined;
  let cancelNative = () => {};
  const onAbort = () => cancelNative();
  try {
    const work = start((error) => {
      thrown ??= { error };
      cancelNative();
    });
    cancelNative = () => work.cancel();
    signal?.addEventListener('abort', onAbort, { once: true });
    return await work.promise;
  } catch (error) {
    if (thrown !== undefined) throw thrown.error;
    if (signal?.aborted) throw aborted(signal);
    throw toEngineError(error);
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}
