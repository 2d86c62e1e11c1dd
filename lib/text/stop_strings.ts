/**
 * Finds stop strings in text that arrives in pieces. Text is held back only while it could still become one, and what is
 * found does not depend on where the pieces were cut: the string that ends first wins, of two that end together the longer.
 */

export interface StopMatch {
  stop: string;
}

export class StopStrings {
  private held = '';

  constructor(
    private readonly stops: readonly string[],
    private readonly keepStop: boolean,
  ) {}

  /** Adds text; returns what is safe to show. With `active` false, strings that end within `text` are ordinary text. */
  push(text: string, active: boolean): { text: string; match?: StopMatch } {
    if (this.stops.length === 0) return { text };
    const all = this.held + text;
    if (active) {
      const found = this.find(all, this.held.length);
      if (found !== undefined) {
        this.held = '';
        return { text: all.slice(0, this.keepStop ? found.end : found.start), match: { stop: found.stop } };
      }
    }
    const keep = this.possibleStart(all);
    this.held = all.slice(all.length - keep);
    return { text: all.slice(0, all.length - keep) };
  }

  /** What was held back, at the end of the output. */
  flush(): string {
    const text = this.held;
    this.held = '';
    return text;
  }

  /** The match that ends first, at or after `from`: what ended before was passed over while inactive. */
  private find(all: string, from: number): { stop: string; start: number; end: number } | undefined {
    let best: { stop: string; start: number; end: number } | undefined;
    for (const stop of this.stops) {
      const start = all.indexOf(stop, Math.max(0, from - stop.length + 1));
      if (start < 0) continue;
      const end = start + stop.length;
      if (best === undefined || end < best.end || (end === best.end && start < best.start)) best = { stop, start, end };
    }
    return best;
  }

  /** Length of the longest end of `all` that begins a stop string. */
  private possibleStart(all: string): number {
    let longest = 0;
    for (const stop of this.stops) {
      for (let length = Math.min(stop.length - 1, all.length); length > longest; length--) {
        if (all.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
