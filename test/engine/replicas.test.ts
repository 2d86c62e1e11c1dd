/** Several copies of a model behind one Model: the answers of one, aborts, disposal. */
import { expect, test } from 'vitest';
import { AbortError, DisposedError, Model } from '../../lib/index.js';
import { nano } from '../helpers/files.js';

const prompts = ['Fever is', 'The patient was', 'Breathing, pulse and temperature were', 'Two days later the cough'];

test('two copies of two ranks answer like one copy of one', async () => {
  const ask = async (model: Model) => {
    const requests = [...prompts, ...prompts].map((prompt) => ({ prompt, temperature: 0, maxTokens: 12, ignoreEos: true }));
    const results = await model.generateBatch(requests);
    return results.map(({ tokens }) => [...tokens]);
  };
  await using one = await Model.load(nano, { device: 'cpu', compute: 'float32' });
  const expected = await ask(one);
  for (const enableExpertParallel of [false, true]) {
    await using model = await Model.load(nano, {
      device: 'cpu',
      compute: 'float32',
      threads: 1,
      tensorParallelSize: 2,
      dataParallelSize: 2,
      maxNumSeqs: 8,
      enableExpertParallel,
    });
    expect(model.info.limits).toMatchObject({ tensorParallelSize: 2, dataParallelSize: 2, maxNumSeqs: 16 });
    expect(await ask(model)).toEqual(expected);
    expect(model.stats()).toMatchObject({ running: 0, waiting: 0, heldPages: 0 });
    const ids = model.tokenizer.encode(prompts[0] as string);
    const logits = await model.logits(ids);
    expect(logits).toHaveLength(ids.length * model.info.vocabSize);
  }
});

test('structured answers find their masks; aborts and disposal reach every copy', async () => {
  const model = await Model.load(nano, { device: 'cpu', threads: 1, dataParallelSize: 2, maxNumSeqs: 4 });
  const chosen = await Promise.all(
    prompts.map((prompt) => model.generate({ prompt, structured: { choice: ['yes', 'no'] }, maxTokens: 8 }).result),
  );
  for (const { text } of chosen) expect(['yes', 'no']).toContain(text);
  const cut = new AbortController();
  const long = { maxTokens: 1500, ignoreEos: true, temperature: 0 };
  const aborted = prompts.map((prompt) => model.generate({ prompt, ...long, signal: cut.signal }).result);
  cut.abort();
  for (const result of aborted) await expect(result).rejects.toThrow(AbortError);
  await expect.poll(() => model.stats().running + model.stats().waiting).toBe(0);
  const left = prompts.map((prompt) => model.generate({ prompt, ...long }).result);
  const ends = Promise.allSettled(left);
  await model.dispose();
  for (const end of await ends) expect(end).toMatchObject({ status: 'rejected', reason: expect.any(DisposedError) });
});
