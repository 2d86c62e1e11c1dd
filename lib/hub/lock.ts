/**
 * One process at a time: a lock that ends with its holder, however that ends. It is the name of a Unix socket of the kernel's
 * own (Linux's abstract names), so that nothing is left on the disk; whoever waits is connected to the holder and wakes when that
 * connection closes. Containers with a network of their own do not see each other's locks: part_file.ts knows.
 */
import { createHash } from 'node:crypto';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Runs `body` while holding the lock called `name`. `onWait` is called once if somebody else holds it. */
export async function withLock<T>(name: string, signal: AbortSignal, onWait: () => void, body: () => Promise<T>): Promise<T> {
  const path = `\0sigmoe-${createHash('sha256').update(name).digest('hex').slice(0, 40)}`;
  const waiting = new Set<Socket>();
  let server = await tryListen(path, waiting);
  if (server === undefined) onWait();
  while (server === undefined) {
    await closed(path, signal);
    signal.throwIfAborted();
    server = await tryListen(path, waiting);
  }
  try {
    return await body();
  } finally {
    server.close();
    for (const socket of waiting) socket.destroy();
  }
}

function tryListen(path: string, waiting: Set<Socket>): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      waiting.add(socket);
      socket.on('error', () => {}).on('close', () => waiting.delete(socket));
    });
    server.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(undefined);
      else reject(error);
    });
    // Exclusive, or the workers of a cluster would share it.
    server.listen({ path, exclusive: true }, () => resolve(server));
  });
}

/** Settles when the holder is gone, or at the latest with the signal. */
async function closed(path: string, signal: AbortSignal): Promise<void> {
  const refused = await new Promise<boolean>((resolve) => {
    const socket = connect({ path });
    const onAbort = () => socket.destroy();
    signal.addEventListener('abort', onAbort, { once: true });
    let failed = false;
    socket.on('error', () => {
      failed = true;
    });
    socket.on('close', () => {
      signal.removeEventListener('abort', onAbort);
      resolve(failed);
    });
    socket.resume();
  });
  if (refused) await sleep(20);
}
