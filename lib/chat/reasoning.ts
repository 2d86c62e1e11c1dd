/**
 * Separates `<think>` ... `</think>` at the beginning of an answer from the answer. The opening tag may have been in the
 * prompt. Line breaks that a template puts around the tags belong to neither part.
 */

export interface AnswerPart {
  text: string;
  reasoning: string;
}

const OPEN = '<think>';
const CLOSE = '</think>';

export class ReasoningParser {
  private state: 'start' | 'reasoning' | 'answer';
  private held = '';
  /** Nothing of the present part has been given out yet: line breaks are dropped. */
  private fresh: boolean;

  constructor(opened: boolean) {
    this.state = opened ? 'reasoning' : 'start';
    this.fresh = opened;
  }

  get isReasoning(): boolean {
    return this.state === 'reasoning';
  }

  push(text: string): AnswerPart {
    this.held += text;
    const part = { text: '', reasoning: '' };
    if (this.state === 'start') this.readStart();
    if (this.state === 'reasoning') part.reasoning = this.readReasoning();
    if (this.state === 'answer') part.text = this.readAnswer();
    return part;
  }

  /** What was held back, at the end of the output. */
  flush(): AnswerPart {
    const rest = this.held;
    this.held = '';
    if (this.state === 'reasoning') return { text: '', reasoning: this.takeFresh(rest).replace(/\n+$/, '') };
    return { text: this.takeFresh(rest), reasoning: '' };
  }

  private readStart(): void {
    const body = this.held.trimStart();
    if (body.startsWith(OPEN)) {
      this.held = body.slice(OPEN.length);
      this.state = 'reasoning';
      this.fresh = true;
    } else if (!OPEN.startsWith(body)) {
      this.state = 'answer';
    }
  }

  private readReasoning(): string {
    const end = this.held.indexOf(CLOSE);
    if (end >= 0) {
      const reasoning = this.takeFresh(this.held.slice(0, end)).replace(/\n+$/, '');
      this.held = this.held.slice(end + CLOSE.length);
      this.state = 'answer';
      this.fresh = true;
      return reasoning;
    }
    // Line breaks may stand before the closing tag, of which a part may have come already.
    const keep = /\n*(?:<(?:\/(?:t(?:h(?:i(?:n(?:k)?)?)?)?)?)?)?$/.exec(this.held)?.[0].length ?? 0;
    const ready = this.held.slice(0, this.held.length - keep);
    this.held = this.held.slice(this.held.length - keep);
    return this.takeFresh(ready);
  }

  private readAnswer(): string {
    const text = this.held;
    this.held = '';
    return this.takeFresh(text);
  }

  private takeFresh(text: string): string {
    if (!this.fresh) return text;
    const rest = text.replace(/^\n+/, '');
    if (rest !== '') this.fresh = false;
    return rest;
  }
}

/** Whether a prompt leaves the model inside its thinking. */
export function opensReasoning(promptEnd: string): boolean {
  return promptEnd.trimEnd().endsWith(OPEN);
}
