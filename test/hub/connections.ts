/** What processes that are started from here connect to: see record_connections.mjs. */
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { folderWith, root } from '../helpers/files.js';

/** From now on, of every Node process; answers with what was recorded since the last call. */
export function recordConnections(): () => string[] {
  const file = join(folderWith({}), 'connections');
  process.env.SIGMOE_TEST_CONNECTIONS = file;
  process.env.NODE_OPTIONS = `--import=${pathToFileURL(join(root, 'test/hub/record_connections.mjs'))}`;
  return () => {
    const lines = existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n') : [];
    rmSync(file, { force: true });
    return lines;
  };
}
