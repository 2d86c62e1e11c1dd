/**
 * Gives a masked request of the engine its masks: for every step those of the next token and of the tokens behind its drafts,
 * from the grammar once the reasoning has ended, and one that allows everything before. The engine runs other sequences while
 * masks are on their way.
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
    private readonly reasoning: { maskWords: number; mayClose(id: number): boolean },
    private readonly onFailure: (error: EngineError) => void,
  ) {}

  /** Takes a token of the output; `belongs`: it is part of the answer, not of the reasoning before it. */
  take(id: number, belongs: boolean): void {
    this.position++;
    if (belongs) this.matcher.accept(id);
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.matcher.close();
  }

  /** Masks that allow all, of the tokens that are reasoning still when the drafts come true; undefined is one of them. */
  private anythingBehind(drafts: readonly number[]): Int32Array | undefined {
    const closing = drafts.findIndex((id) => this.reasoning.mayClose(id));
    const n = closing < 0 ? drafts.length : closing;
    return n === 0 ? undefined : new Int32Array((n + 1) * this.reasoning.maskWords).fill(-1);
  }

  /** Sends the masks of the next step. `inReasoning`: its token comes before the end of the reasoning. */
  feed(inReasoning: boolean, drafts: readonly number[]): void {
    if (this.closed) return;
    const { position } = this;
    if (inReasoning) {
      this.dispatcher.setMasks(this.request, position, this.anythingBehind(drafts));
      return;
    }
    this.matcher.masks(drafts).then(
      (masks) => {
        if (!this.closed) this.dispatcher.setMasks(this.request, position, masks);
      },
      (error: unknown) => {
        if (!this.closed) this.onFailure(toEngineError(error));
      },
    );
  }
}
