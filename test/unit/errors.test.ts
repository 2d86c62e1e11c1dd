import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { errorFromCode, toEngineError } from '../../lib/errors.js';
import { AbortError, CheckpointError, DisposedError, EngineError, InternalError, OutOfMemoryError } from '../../lib/index.js';
import { root } from '../helpers/files.js';

describe('errors', () => {
  test('every code of the native side has a class', () => {
    const names = readFileSync(join(root, 'csrc/backend/error.cpp'), 'utf8').match(/ERR_[A-Z_]+/g) ?? [];
    expect(names.length).toBeGreaterThan(8);
    for (const code of names) {
      const error = errorFromCode(code, 'asked: found', 'try');
      expect(error).toBeInstanceOf(EngineError);
      expect({ code: error.code, message: error.message }).toEqual({ code, message: 'asked: found' });
      if (code !== 'ERR_INTERNAL') expect(error).not.toBeInstanceOf(InternalError);
    }
  });

  test('native errors keep code, hint and cause; a message is one line', () => {
    const native = Object.assign(new Error('kv cache: asked 9 GB,\n  free 2 GB'), {
      code: 'ERR_OUT_OF_MEMORY',
      hint: 'lower maxModelLen',
    });
    const error = toEngineError(native);
    expect(error).toBeInstanceOf(OutOfMemoryError);
    expect(error).toMatchObject({ message: 'kv cache: asked 9 GB, free 2 GB', hint: 'lower maxModelLen', cause: native });
    expect(toEngineError(error)).toBe(error);
    expect(toEngineError(new TypeError('boom'))).toBeInstanceOf(InternalError);
    expect(toEngineError('boom').message).toContain('boom');
  });

  test("names are those of the classes, and AbortError is the platform's", () => {
    expect(new DisposedError().name).toBe('DisposedError');
    expect(new CheckpointError('x').name).toBe('CheckpointError');
    expect(new AbortError('x').name).toBe('AbortError');
  });
});
