/** Signals that many listen to at once: every request under way is one. */
import { setMaxListeners } from 'node:events';

/** Aborts with the first of these; any number may listen without a warning. */
export function anySignal(...signals: AbortSignal[]): AbortSignal {
  const signal = AbortSignal.any(signals);
  setMaxListeners(0, signal);
  return signal;
}
