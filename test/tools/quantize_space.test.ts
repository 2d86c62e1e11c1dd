/** `quantize` on a disk that is too full: refused before anything is written. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { quantize } from '../../lib/index.js';
import { folderWith, nano } from '../helpers/files.js';

vi.mock('../../lib/hub/space.js', () => ({ freeBytes: async () => 70_000_000 }));

test('says what is free and what is needed, and leaves nothing behind', async () => {
  const to = join(folderWith({}), 'made');
  await expect(quantize(nano, to)).rejects.toMatchObject({
    code: 'ERR_IO',
    message: expect.stringMatching(/70000000 bytes are free, quantising needs 8\d{7} more/),
    hint: expect.stringContaining('free some space'),
  });
  expect([existsSync(to), existsSync(`${to}.partial`)]).toEqual([false, false]);
});
