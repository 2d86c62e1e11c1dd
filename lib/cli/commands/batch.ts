/** sigmoe generate --batch: requests from a file, answered together, as JSON lines in their order. */
import type { GenerateRequest } from '../../index.js';
import { resultJson } from '../answer.js';
import { CliError } from '../failure.js';
import { type EngineFlags, type SamplingFlags, samplingOptions } from '../flags.js';
import { integer } from '../format.js';
import { readStdin, readText } from '../input.js';
import { interruptible } from '../interrupt.js';
import { loadModel } from '../load.js';
import { progress } from '../progress.js';
import { write } from '../terminal.js';

export async function answerBatch(path: string, file: string, flags: EngineFlags & SamplingFlags): Promise<void> {
  const text = file === '-' ? await readStdin() : await readText(file, 'batch file');
  const requests = parseRequests(text, file, samplingOptions(flags));
  await interruptible(async (signal) => {
    await using model = await loadModel(path, flags, signal);
    const bar = progress('answering');
    try {
      const results = await model.generateBatch(requests, {
        signal,
        onProgress: ({ done, total, completionTokens }) => {
          bar.update(done, total, `${done} of ${total}, ${integer(completionTokens)} tokens`);
        },
      });
      bar.stop();
      for (const [index, result] of results.entries()) await write(`${resultJson(result, { index })}\n`);
    } finally {
      bar.stop();
    }
  });
}

// A line is a user's message as a JSON string, or a request object as the library takes it; flags are its defaults.
function parseRequests(text: string, file: string, defaults: object): GenerateRequest[] {
  const requests: GenerateRequest[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch {
      throw new CliError(`${file} line ${index + 1} is not JSON`);
    }
    if (typeof value === 'string') {
      requests.push({ ...defaults, messages: [{ role: 'user', content: value }] });
    } else if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      requests.push({ ...defaults, ...value } as GenerateRequest); // the library checks every field by name
    } else {
      throw new CliError(`${file} line ${index + 1} is neither a JSON object nor a string`);
    }
  }
  if (requests.length === 0) throw new CliError(`${file} holds no request`);
  return requests;
}
