/** Bundles: everything that a machine without a network needs, in one archive. */
export { nameOf } from './contents.js';
export { type InstalledBundle, installBundle } from './install.js';
export { readBundle } from './read.js';
export { type BundleFacts, type BundleProgress, writeBundle } from './write.js';
