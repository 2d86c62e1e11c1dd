/** Finding and loading a model for a command: progress bars, and the notice that a model folder may carry. */
import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { Model, resolveModel } from '../index.js';
import { CliError } from './failure.js';
import { type EngineFlags, engineOptions, type ModelFlags } from './flags.js';
import { bytes } from './format.js';
import { readText } from './input.js';
import { downloadProgress, progress } from './progress.js';
import { dim, note } from './terminal.js';

/** The folders of a model and of its draft, downloaded if that was asked. */
export async function findModel<F extends ModelFlags & { draft?: string | undefined }>(
  model: string,
  flags: F,
  signal?: AbortSignal,
): Promise<{ path: string; flags: F }> {
  const path = await findFolder(model, flags, signal);
  if (flags.draft === undefined) return { path, flags };
  // A draft is another model: the revision is not of it.
  return { path, flags: { ...flags, draft: await findFolder(flags.draft, { ...flags, revision: undefined }, signal) } };
}

async function findFolder(
  model: string,
  { download, revision, source }: ModelFlags,
  signal: AbortSignal | undefined,
): Promise<string> {
  const bars = downloadProgress();
  try {
    return await resolveModel(model, { download, revision, source, signal, onProgress: bars.update, onNote: note });
  } finally {
    bars.stop();
  }
}

/** Loads a model and shows its notice: what whoever made the folder wants every reader of its answers to know. */
export async function loadModel(named: string, given: EngineFlags, signal: AbortSignal): Promise<Model> {
  const { path, flags } = await findModel(named, given, signal);
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
