/** Loading a model for a command: its progress bar, and the notice that a model folder may carry. */
import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { Model } from '../index.js';
import { CliError } from './failure.js';
import { type EngineFlags, engineOptions } from './flags.js';
import { bytes } from './format.js';
import { readText } from './input.js';
import { progress } from './progress.js';
import { dim, note } from './terminal.js';

/** Loads a model and shows its notice: what whoever made the folder wants every reader of its answers to know. */
export async function loadModel(path: string, flags: EngineFlags, signal: AbortSignal): Promise<Model> {
  const chatTemplate = flags.chatTemplate === undefined ? undefined : await readText(flags.chatTemplate, 'chat template');
  const bar = progress('loading');
  let model: Model;
  try {
    model = await Model.load(path, {
      ...engineOptions(flags),
      chatTemplate,
      signal,
      onProgress: ({ bytesDone, bytesTotal }) => {
        bar.update(bytesDone, bytesTotal, `${bytes(bytesDone)} of ${bytes(bytesTotal)}`);
      },
    });
  } finally {
    bar.stop();
  }
  const notice = await readNotice(path);
  if (notice !== undefined) note(dim(notice));
  return model;
}

// sigmoe.json beside config.json: {"notice": "one line"}. One that cannot be read fails the command: a warning is not
// dropped in silence.
export async function readNotice(folder: string): Promise<string | undefined> {
  const path = join(folder, 'sigmoe.json');
  try {
    await access(path);
  } catch {
    return undefined;
  }
  let content: unknown;
  try {
    content = JSON.parse(await readText(path, 'notice'));
  } catch (error) {
    throw error instanceof CliError ? error : new CliError(`${path} is not JSON`);
  }
  if (typeof content !== 'object' || content === null || !('notice' in content) || typeof content.notice !== 'string') {
    throw new CliError(`${path} holds no text field "notice"`);
  }
  return content.notice.replace(/\s+/g, ' ');
}
