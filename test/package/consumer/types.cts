// Compiled, never run: the declarations for a CommonJS program.
import sigmoe = require('sigmoe');

export async function answer(): Promise<string> {
  const model: sigmoe.Model = await sigmoe.Model.load('model', { device: 'cpu' });
  const { text } = await model.generate({ messages: [{ role: 'user', content: 'Hi' }] }).result;
  // @ts-expect-error: no such option
  await sigmoe.Model.load('model', { devise: 'cpu' });
  return text;
}
