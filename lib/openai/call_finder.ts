/** Finds tool calls in the text of an answer, as the wire wants them: pieces for a stream, whole calls for an answer. */
import { ToolCallParser } from '../chat/tool_calls.js';
import type { ToolCallDelta, WireToolCall } from './wire.js';

export interface Found {
  text: string;
  calls: ToolCallDelta[];
}

export class CallFinder {
  /** The calls so far. */
  readonly found: WireToolCall[] = [];
  private readonly parser: ToolCallParser | undefined;

  /** `active` false passes text through. `oneCall` leaves out calls after the first, and what follows it. */
  constructor(
    active: boolean,
    private readonly oneCall: boolean,
  ) {
    if (active) this.parser = new ToolCallParser();
  }

  push(text: string): Found {
    return this.parser === undefined ? { text, calls: [] } : this.read(this.parser.push(text));
  }

  flush(): Found {
    return this.parser === undefined ? { text: '', calls: [] } : this.read(this.parser.flush());
  }

  private read(events: ReturnType<ToolCallParser['push']>): Found {
    const calls: ToolCallDelta[] = [];
    for (const { index, id, name, arguments: text } of events.calls) {
      if (this.oneCall && index > 0) continue;
      let call = this.found[index];
      if (call === undefined) {
        call = { id: id ?? '', type: 'function', function: { name: name ?? '', arguments: '' } };
        this.found[index] = call;
        calls.push({ index, id: call.id, type: 'function', function: { name: call.function.name, arguments: text ?? '' } });
      } else calls.push({ index, function: { arguments: text ?? '' } });
      call.function.arguments += text ?? '';
    }
    return { text: events.text, calls };
  }
}
