/** A model on its way: the server answers from its first second, and says how far the loading is. */
import type { LoadProgress, Model } from '../index.js';

export type LoadState =
  | { stage: 'loading'; percent: number }
  | { stage: 'ready'; model: Model }
  /** Why is for whoever started the server; its callers see only that it did. */
  | { stage: 'failed' };

export class LoadingModel {
  /** Settles with the load; rejects as it does. */
  readonly ready: Promise<Model>;
  private current: LoadState = { stage: 'loading', percent: 0 };
  private settle: (model: Promise<Model>) => void = () => {};

  constructor() {
    this.ready = new Promise((resolve) => {
      this.settle = resolve;
    });
    // Whoever waits for it hears of a failure; where nobody does, the state tells it.
    this.ready.catch(() => {});
  }

  /** A model that is loaded already. */
  static of(model: Model): LoadingModel {
    const loading = new LoadingModel();
    loading.current = { stage: 'ready', model };
    loading.settle(Promise.resolve(model));
    return loading;
  }

  get state(): LoadState {
    return this.current;
  }

  /** Called once. */
  begin(load: (onProgress: (progress: LoadProgress) => void) => Promise<Model>): void {
    const model = load(({ bytesDone, bytesTotal }) => {
      const percent = bytesTotal > 0 ? Math.floor((100 * bytesDone) / bytesTotal) : 0;
      this.current = { stage: 'loading', percent: Math.min(99, percent) };
    });
    this.settle(
      model.then(
        (loaded) => {
          this.current = { stage: 'ready', model: loaded };
          return loaded;
        },
        (error: unknown) => {
          this.current = { stage: 'failed' };
          throw error;
        },
      ),
    );
  }
}
