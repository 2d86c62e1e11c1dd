/**
 * Renders with a template that nobody has vouched for: in a thread of its own, which is ended when it takes too long or
 * too much memory.
 */
import { Worker } from 'node:worker_threads';
import { InvalidArgumentError } from '../errors.js';
import type { RenderJob, RenderReply } from './template_worker.js';

const LIMIT_MS = 2000;
const LIMIT_MB = 256;
const MAX_CHARACTERS = 1 << 20;

export function renderApart(job: RenderJob): Promise<{ marked: string; marker: string }> {
  if (job.template.length > MAX_CHARACTERS) {
    throw refusal(`expected at most ${MAX_CHARACTERS} characters, found ${job.template.length}`);
  }
  return new Promise((resolve, reject) => {
    const thread = new Worker(new URL('./template_worker.js', import.meta.url), {
      workerData: job,
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: LIMIT_MB, maxYoungGenerationSizeMb: 32 },
    });
    const timer = setTimeout(() => {
      reject(refusal(`took longer than ${LIMIT_MS} ms`));
      void thread.terminate();
    }, LIMIT_MS);
    const settle = (act: () => void) => {
      clearTimeout(timer);
      act();
    };
    thread.on('message', (reply: RenderReply) =>
      settle(() => {
        if ('marked' in reply) resolve(reply);
        else reject(new InvalidArgumentError(reply.argument, reply.message));
      }),
    );
    thread.on('error', (cause) => settle(() => reject(refusal(`failed: ${cause.name}`, cause))));
    thread.on('exit', () => settle(() => reject(refusal('ended without a prompt'))));
  });
}

function refusal(problem: string, cause?: unknown): InvalidArgumentError {
  return new InvalidArgumentError('chatTemplate', `chatTemplate: ${problem}`, '', cause === undefined ? {} : { cause });
}
