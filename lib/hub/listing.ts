/** What a revision of a model holds. Made of a server's answer, of which nothing is taken on trust: see `checkListing`. */
import { DownloadError } from '../errors.js';
import { checkDistinct, checkRelativePath } from './ids.js';

export interface RemoteFile {
  path: string;
  size: number;
  /** Of the content: SHA-256, or for small files of Hugging Face the SHA-1 of git. Also the name of its blob in the cache. */
  hash: { algorithm: 'sha256' | 'git-sha1'; hex: string };
}

export interface Listing {
  /** Of the revision; of ModelScope, which tells none, a hash of the list. */
  commit: string;
  files: RemoteFile[];
}

const MAX_FILES = 100_000;
const DIGITS = { sha256: 64, 'git-sha1': 40 };

/** Refuses what could not be stored safely or could not be verified. */
export function checkListing(listing: Listing, from: string): Listing {
  const { commit, files } = listing;
  if (!/^[0-9a-f]{40}$/.test(commit)) throw new DownloadError(`${from}: the server names no commit`);
  if (files.length === 0) throw new DownloadError(`${from}: there are no files`);
  if (files.length > MAX_FILES) throw new DownloadError(`${from}: ${files.length} files, where at most ${MAX_FILES} are taken`);
  for (const { path, size, hash } of files) {
    checkRelativePath(path, from);
    if (!Number.isSafeInteger(size) || size < 0) throw new DownloadError(`${from}: no length is listed for ${path}`);
    if (hash.hex.length !== DIGITS[hash.algorithm] || !/^[0-9a-f]+$/.test(hash.hex)) {
      throw new DownloadError(`${from}: ${path} is listed without a hash to verify it by`);
    }
  }
  checkDistinct(
    files.map(({ path }) => path),
    from,
  );
  return listing;
}

/** The files that patterns choose: `*` any characters, `?` one. Without `include`, all but those of `exclude`. */
export function chosen(files: readonly RemoteFile[], include: readonly string[], exclude: readonly string[]): RemoteFile[] {
  const wanted = include.map(patternOf);
  const unwanted = exclude.map(patternOf);
  return files.filter(
    ({ path }) =>
      (wanted.length === 0 || wanted.some((pattern) => pattern.test(path))) && !unwanted.some((pattern) => pattern.test(path)),
  );
}

function patternOf(glob: string): RegExp {
  const source = glob
    .replace(/[.+^${}()|[\]\\]/g, '\\$&')
    .replace(/\*+/g, '[^]*')
    .replaceAll('?', '[^]');
  return new RegExp(`^${source}$`);
}
