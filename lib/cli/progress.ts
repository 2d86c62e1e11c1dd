/** Progress bars on stderr; nothing at all where stderr is not a terminal. */
import { MultiBar, Presets, SingleBar } from 'cli-progress';
import type { PullProgress } from '../index.js';
import { bytes } from './format.js';

export interface Progress {
  update(done: number, total: number, detail: string): void;
  stop(): void;
}

const silent: Progress = { update() {}, stop() {} };

export function progress(label: string): Progress {
  if (!process.stderr.isTTY) return silent;
  const bar = new SingleBar(
    {
      stream: process.stderr,
      format: `${label} {bar} {percentage}% {detail}`,
      hideCursor: true,
      clearOnComplete: true,
      barsize: 30,
      etaBuffer: 1,
    },
    Presets.shades_classic,
  );
  let running = false;
  return {
    update(done, total, detail) {
      if (running) {
        bar.update(done, { detail });
        return;
      }
      bar.start(total, done, { detail });
      running = true;
    },
    stop() {
      if (running) bar.stop();
      running = false;
    },
  };
}

/** A bar for the whole of a download, and one for each file on its way. */
export function downloadProgress(): { update(progress: PullProgress): void; stop(): void } {
  if (!process.stderr.isTTY) return { update() {}, stop() {} };
  const bars = new MultiBar(
    {
      stream: process.stderr,
      format: '{name} {bar} {percentage}% {detail}',
      hideCursor: true,
      clearOnComplete: true,
      barsize: 24,
      forceRedraw: true,
    },
    Presets.shades_classic,
  );
  const started = { at: Date.now(), bytes: 0 };
  let whole: SingleBar | undefined;
  const files = new Map<string, SingleBar>();
  return {
    update({ bytesDone, bytesTotal, filesDone, filesTotal, active }) {
      if (whole === undefined) {
        started.bytes = bytesDone;
        whole = bars.create(bytesTotal, bytesDone, { name: label('downloading'), detail: '' });
      }
      const seconds = (Date.now() - started.at) / 1000;
      const rate = bytes(Math.max(0, bytesDone - started.bytes) / Math.max(seconds, 0.1));
      whole.update(bytesDone, {
        detail: `${bytes(bytesDone)} of ${bytes(bytesTotal)}, ${filesDone}/${filesTotal} files, ${rate}/s`,
      });
      for (const [path, bar] of files) {
        if (active.some((file) => file.path === path)) continue;
        bars.remove(bar);
        files.delete(path);
      }
      for (const { path, bytesDone: done, bytesTotal: total } of active) {
        const bar = files.get(path) ?? bars.create(total, done, { name: label(path), detail: '' });
        files.set(path, bar);
        bar.update(done, { detail: `${bytes(done)} of ${bytes(total)}` });
      }
    },
    stop() {
      bars.stop();
    },
  };
}

// As wide as every other; of a long name the end tells more.
function label(text: string): string {
  return text.length <= 28 ? text.padEnd(28) : `…${text.slice(-27)}`;
}
