/**
 * Gives a masked request of the engine its masks: one for every token, from the grammar once the reasoning has ended and
 * allowing everything before. The engine runs other sequences while a mask is on its way.
 */
import type { Dispatcher } from './dispatcher.js';
import { type EngineError, toEngineError } from './errors.js';
import type { GrammarMatcher } from './grammar/matcher.js';

export class MaskFeeder {
  private position = 0;
  private closed = false;

  constructor(
    private readonly matcher: GrammarMatcher,
    private readonly dispatcher: Dispatcher,
    private readonly request: number,
    private readonly onFailure: (error: EngineError) => void,
  ) {}

  /** Takes the token that the last mask was for; `belongs`: it is part of the answer, not of the reasoning before it. */
  take(id: number, belongs: boolean, inReasoning: boolean): void {
    this.position++;
    if (belongs) this.matcher.accept(id);
    this.feed(inReasoning);
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.matcher.close();
  }

  /** Sends the mask of the next token. `inReasoning`: it comes before the end of the reasoning. */
  feed(inReasoning: boolean): void {
    if (this.closed) return;
    const { position } = this;
    if (inReasoning) {
      this.dispatcher.setMask(this.request, position, undefined);
      return;
    }
    this.matcher.mask().then(
      (mask) => {
        if (!this.closed) this.dispatcher.setMask(this.request, position, mask);
      },
      (error: unknown) => {
        if (!this.closed) this.onFailure(toEngineError(error));
      },
    );
  }
}
