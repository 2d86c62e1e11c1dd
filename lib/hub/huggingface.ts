/** The protocol of Hugging Face, also spoken by its mirrors: one list of a revision, one address for each file of a commit. */
import { isFields } from '../folder.js';
import type { Hub } from './hub.js';
import { checkListing, type RemoteFile } from './listing.js';

export const huggingFace: Hub = {
  defaultRevision: 'main',

  secrets: (token) => ({ authorization: `Bearer ${token}` }),

  async list(http, endpoint, id, revision, signal) {
    const address = `${endpoint}/api/models/${id}/revision/${encodeURIComponent(revision)}?blobs=true`;
    const answer = await http.json(address, signal);
    const { sha, siblings } = isFields(answer) ? answer : {};
    const files = (Array.isArray(siblings) ? (siblings as unknown[]) : []).map(readFile);
    return checkListing({ commit: typeof sha === 'string' ? sha : '', files }, `${id} at ${endpoint}`);
  },

  fileUrl(endpoint, id, _revision, commit, path) {
    return `${endpoint}/${id}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`;
  },
};

function readFile(entry: unknown): RemoteFile {
  const { rfilename, size, blobId, lfs } = isFields(entry) ? entry : {};
  // `lfs` describes the content, `size` beside it may be that of the pointer.
  const large = isFields(lfs) ? lfs : undefined;
  return {
    path: String(rfilename ?? ''),
    size: Number((large === undefined ? size : large.size) ?? Number.NaN),
    hash:
      large === undefined
        ? { algorithm: 'git-sha1', hex: String(blobId ?? '') }
        : { algorithm: 'sha256', hex: String(large.sha256 ?? large.oid ?? '') },
  };
}
