/** What a bundle says it holds. It is the last file of the archive, so that one pass writes it and one pass checks it. */
import { CheckpointError } from '../errors.js';
import { isFields } from '../folder.js';
import { checkDistinct, checkRelativePath } from '../hub/ids.js';

export interface BundledFile {
  path: string;
  size: number;
  executable: boolean;
  sha256: string;
}

export interface Manifest {
  format: 1;
  /** Version of the package. */
  sigmoe: string;
  platform: string;
  arch: string;
  /** Versions of Node that the package takes. */
  node: string;
  /** Folders of models in the bundle. */
  models: string[];
  files: BundledFile[];
}

/** Every file of the archive is below this folder, so that unpacking it by hand makes one folder. */
export const ROOT = 'sigmoe-bundle/';
export const MANIFEST = 'manifest.json';
/** The program that starts the bundled sigmoe. */
export const LAUNCHER = 'sigmoe';
export const MAX_FILES = 200_000;
export const MAX_MANIFEST_BYTES = 64 * 1024 * 1024;

export function readManifest(text: string, from: string): Manifest {
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(`${from}: its manifest is not JSON`, '', { cause });
  }
  const fields = isFields(content) ? content : {};
  if (fields.format !== 1) {
    throw new CheckpointError(
      `${from}: its manifest is of format ${Number(fields.format)}, where 1 is read`,
      'use a newer sigmoe',
    );
  }
  const { sigmoe, platform, arch, node, models, files } = fields;
  const texts = [sigmoe, platform, arch, node].every((value) => typeof value === 'string');
  if (!texts || !Array.isArray(models) || !Array.isArray(files))
    throw new CheckpointError(`${from}: its manifest lacks fields`);
  for (const model of models as unknown[]) checkRelativePath(model, from);
  const list = (files as unknown[]).map((file) => readFile(file, from));
  checkDistinct(
    list.map(({ path }) => path),
    from,
  );
  return { ...(fields as unknown as Manifest), files: list };
}

function readFile(entry: unknown, from: string): BundledFile {
  const { path, size, executable, sha256 } = isFields(entry) ? entry : {};
  const name = checkRelativePath(path, from);
  if (Number.isSafeInteger(size) && typeof executable === 'boolean' && /^[0-9a-f]{64}$/.test(String(sha256))) {
    return { path: name, size: Number(size), executable, sha256: String(sha256) };
  }
  throw new CheckpointError(`${from}: its manifest does not describe ${name}`);
}
