// Compiled, never run: the declarations for an ES module.
import { type Chunk, EngineError, Model } from 'sigmoe';

export async function answer(): Promise<Chunk[]> {
  const model = await Model.load('model', { device: 'cpu' });
  const chunks: Chunk[] = [];
  for await (const chunk of model.generate({ prompt: 'Hi' })) chunks.push(chunk);
  // @ts-expect-error: a code is one of a closed set
  if (chunks.length > 0) throw new EngineError('ERR_OTHER', 'no');
  return chunks;
}
