/** Ports for programs that must be told theirs before they listen. */
import { once } from 'node:events';
import { createServer } from 'node:net';

// Below those that Linux hands out by itself (ip_local_port_range, from 32768): one of those could go to a neighbour's connection
// between the look here and its use. Each test process has a part of its own, and every call the next of it.
const FIRST = 20_000;
const PART = 400;
const PARTS = 32;
const begin = FIRST + (Number(process.env.VITEST_POOL_ID ?? 0) % PARTS) * PART;
let next = process.pid % PART;

/** A port of 127.0.0.1 where nobody listens, and that no other test is given for a long while. */
export async function freePort(): Promise<number> {
  for (let tried = 0; tried < PART; tried++) {
    const port = begin + (next++ % PART);
    const server = createServer().listen(port, '127.0.0.1');
    const free = await once(server, 'listening').then(
      () => true,
      () => false,
    );
    if (!free) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
  throw new Error(`no port from ${begin} to ${begin + PART - 1} is free`);
}
