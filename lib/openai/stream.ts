/**
 * A streamed answer that has begun: its first item is there before the caller gets it, so that whatever is wrong with a
 * request is an error of the call and not of the stream.
 */
import { type OpenAIError, toOpenAIError } from './errors.js';

export class BegunStream<T> implements AsyncIterableIterator<T> {
  private first: IteratorResult<T, void> | undefined;

  private constructor(
    private readonly source: AsyncGenerator<T, void, undefined>,
    private readonly toError: (error: unknown) => OpenAIError,
    first: IteratorResult<T, void>,
  ) {
    this.first = first;
  }

  static async begin<T>(
    source: AsyncGenerator<T, void, undefined>,
    wireNames: ReadonlyMap<string, string>,
  ): Promise<BegunStream<T>> {
    const toError = (error: unknown) => toOpenAIError(error, wireNames);
    try {
      return new BegunStream(source, toError, await source.next());
    } catch (error) {
      throw toError(error);
    }
  }

  async next(): Promise<IteratorResult<T, void>> {
    const { first } = this;
    if (first !== undefined) {
      this.first = undefined;
      return first;
    }
    try {
      return await this.source.next();
    } catch (error) {
      throw this.toError(error);
    }
  }

  /** Ends the generations behind the stream. */
  async return(): Promise<IteratorResult<T, void>> {
    this.first = undefined;
    await this.source.return();
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
