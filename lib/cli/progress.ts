/** A progress bar on stderr; nothing at all where stderr is not a terminal. */
import { Presets, SingleBar } from 'cli-progress';

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
