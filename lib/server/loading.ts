/** A model on its way: the server answers from its first second, and says how far the loading is. */
import type { LoadProgress, Model } from '../index.js';

export type LoadState =
  | { stage: 'loading'; percent: number }
  | { stage: 'ready'; model: Model }
  /** `message` is the load's own error, for the log; callers of the server see only that it failed. */
  | { stage: 'failed'; message: string };

export class LoadingModel {
  /** Settles with the load; rejects as it does. */
  readonly ready: Promise<Model>;
  private current: LoadState = { stage: 'loading', percent: 0 };

  constructor(load: (onProgress: (progress: LoadProgress) => void) => Promise<Model>) {
    this.ready = load(({ bytesDone, bytesTotal }) => {
      const percent = bytesTotal > 0 ? Math.floor((100 * bytesDone) / bytesTotal) : 0;
      this.current = { stage: 'loading', percent: Math.min(99, percent) };
    });
    this.ready.then(
      (model) => {
        this.current = { stage: 'ready', model };
      },
      (error: unknown) => {
        this.current = { stage: 'failed', message: error instanceof Error ? error.message : String(error) };
      },
    );
  }

  /** A model that is loaded already. */
  static of(model: Model): LoadingModel {
    const loading = new LoadingModel(async () => model);
    loading.current = { stage: 'ready', model };
    return loading;
  }

  get state(): LoadState {
    return this.current;
  }
}
