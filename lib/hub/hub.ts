/** What the hubs have in common. */
import type { Source } from './environment.js';
import type { Http } from './http.js';
import { huggingFace } from './huggingface.js';
import type { Listing } from './listing.js';
import { modelScope } from './modelscope.js';

export interface Hub {
  defaultRevision: string;
  /** Headers that carry a token. */
  secrets(token: string): Record<string, string>;
  list(http: Http, endpoint: string, id: string, revision: string, signal: AbortSignal): Promise<Listing>;
  fileUrl(endpoint: string, id: string, revision: string, commit: string, path: string): string;
}

export const HUBS: Record<Source, Hub> = { huggingface: huggingFace, modelscope: modelScope };
