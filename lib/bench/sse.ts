/** Server-sent events out of a stream of bytes, however the network cuts it. */

export class SseParser {
  private readonly decoder = new TextDecoder();
  private rest = '';
  private afterReturn = false;
  private data: string[] = [];

  /** The data of every event that these bytes complete. An event without its blank line never comes out. */
  push(bytes: Uint8Array): string[] {
    const events: string[] = [];
    let text = this.decoder.decode(bytes, { stream: true });
    // A \r ended its line when it came; the \n of the same pair may come with the next bytes.
    if (this.afterReturn && text !== '') {
      if (text.startsWith('\n')) text = text.slice(1);
      this.afterReturn = false;
    }
    if (text.endsWith('\r')) this.afterReturn = true;
    const lines = text.split(/\r\n|\n|\r/);
    lines[0] = this.rest + lines[0];
    this.rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line !== '') this.takeField(line);
      else if (this.data.length > 0) events.push(this.data.splice(0).join('\n'));
    }
    return events;
  }

  private takeField(line: string): void {
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    if (name !== 'data') return; // comments, event names and ids mean nothing here
    const value = colon < 0 ? '' : line.slice(colon + 1);
    this.data.push(value.startsWith(' ') ? value.slice(1) : value);
  }
}
