/** Models of Hugging Face and ModelScope: their caches on this machine, and downloads into them. */
export type { Source } from './environment.js';
export type { PullProgress } from './progress.js';
export { type PullOptions, type PullResult, pull } from './pull.js';
export { type ModelSource, type ResolveOptions, resolveModel } from './resolve.js';
