/**
 * Tokens as bytes. A byte-level vocabulary spells each byte as one printable character; a token may hold part of a
 * character, so text is decoded from the bytes of all tokens in a row and never from one token alone.
 */

/** The byte that each character of the alphabet stands for: printable Latin-1 for itself, the rest from U+0100 on. */
const BYTE_OF = new Map<string, number>();
let next = 0x100;
for (let byte = 0; byte < 256; byte++) {
  const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  BYTE_OF.set(String.fromCharCode(printable ? byte : next++), byte);
}

const utf8 = new TextEncoder();

/** The bytes of a vocabulary entry; one that is not written in the alphabet is taken as text, as added tokens are. */
export function bytesOfToken(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTE_OF.get(token.charAt(i));
    if (byte === undefined) return utf8.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}

/** Turns ids into text as they come. Bytes that do not yet make a character wait for the next id. */
export class TokenDecoder {
  private readonly utf8 = new TextDecoder('utf-8', { ignoreBOM: true });

  constructor(private readonly bytesOf: (id: number) => Uint8Array) {}

  push(ids: number | Iterable<number>): string {
    if (typeof ids === 'number') return this.utf8.decode(this.bytesOf(ids), { stream: true });
    let text = '';
    for (const id of ids) text += this.utf8.decode(this.bytesOf(id), { stream: true });
    return text;
  }

  /** What is left at the end: U+FFFD for bytes that never became a character. */
  flush(): string {
    return this.utf8.decode();
  }
}
