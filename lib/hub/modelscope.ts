/** The protocol of ModelScope: one list of a revision, one address for each file of it. It names no commit of the whole. */
import { createHash } from 'node:crypto';
import { DownloadError } from '../errors.js';
import { isFields } from '../folder.js';
import type { Hub } from './hub.js';
import { checkListing, type RemoteFile } from './listing.js';

export const modelScope: Hub = {
  defaultRevision: 'master',

  // Older routes read the cookie, newer ones the header.
  secrets: (token) => ({ authorization: `Bearer ${token}`, cookie: `m_session_id=${token}` }),

  async list(http, endpoint, id, revision, signal) {
    const query = new URLSearchParams({ Revision: revision, Recursive: 'true' });
    const answer = await http.json(`${endpoint}/api/v1/models/${id}/repo/files?${query}`, signal);
    const { Data, Code, Success } = isFields(answer) ? answer : {};
    if (Success === false || (Code !== undefined && Code !== 200)) {
      throw new DownloadError(`${id} at ${endpoint}: the server refuses to list it (code ${Number(Code)})`);
    }
    const entries = isFields(Data) && Array.isArray(Data.Files) ? (Data.Files as unknown[]) : [];
    const files = entries.filter((entry) => !(isFields(entry) && entry.Type === 'tree')).map(readFile);
    return checkListing({ commit: hashOf(files), files }, `${id} at ${endpoint}`);
  },

  fileUrl(endpoint, id, revision, _commit, path) {
    return `${endpoint}/api/v1/models/${id}/repo?${new URLSearchParams({ Revision: revision, FilePath: path })}`;
  },
};

function readFile(entry: unknown): RemoteFile {
  const { Path, Size, Sha256 } = isFields(entry) ? entry : {};
  return {
    path: String(Path ?? ''),
    size: Number(Size ?? Number.NaN),
    hash: { algorithm: 'sha256', hex: String(Sha256 ?? '').toLowerCase() },
  };
}

/** Stands for the commit: the same list, the same name. */
function hashOf(files: readonly RemoteFile[]): string {
  const lines = files.map(({ path, hash }) => `${hash.hex} ${path}\n`).sort();
  return createHash('sha1').update(lines.join('')).digest('hex');
}
