// A chat backend in an Express app: one model for all sessions, answers streamed as server-sent events, a generation that
// ends when its reader leaves. Needs `npm install express`.
//   node examples/express_chat.mjs [model folder] [port]
//   curl -N http://127.0.0.1:3000/sessions/ward-3/messages -H 'content-type: application/json' -d '{"text": "What is asthma?"}'
import { EngineError, Model } from 'sigmoe';
import express from 'express';

const model = await Model.load(process.argv[2] ?? 'models/nano');
const sessions = new Map(); // id -> messages; a real app keeps them where patient data may be kept
const instructions = { role: 'system', content: 'You answer questions of patients, briefly and carefully.' };

const app = express();
app.use(express.json({ limit: '64kb' }));

app.get('/health', (_request, response) => response.json({ model: model.info.architecture, device: model.info.device.name }));

app.post('/sessions/:id/messages', async (request, response) => {
  const { text } = request.body ?? {};
  if (typeof text !== 'string' || text.trim() === '') return response.status(400).json({ error: 'text: expected a question' });
  const messages = sessions.get(request.params.id) ?? [instructions];
  const question = { role: 'user', content: text };

  const left = new AbortController();
  response.on('close', () => left.abort());
  try {
    const generation = model.generate({
      messages: [...messages, question],
      maxTokens: 200,
      temperature: 0.6,
      topP: 0.95,
      signal: left.signal,
      cacheSalt: request.params.id, // nobody finds out by timing what another session asked
    });
    response.setHeader('content-type', 'text/event-stream');
    for await (const chunk of generation) {
      if (chunk.text !== '') response.write(`data: ${JSON.stringify({ text: chunk.text })}\n\n`);
    }
    const { text: answer, finishReason, usage } = await generation.result;
    sessions.set(request.params.id, [...messages, question, { role: 'assistant', content: answer }]);
    response.end(`data: ${JSON.stringify({ finishReason, tokens: usage.completionTokens })}\n\n`);
  } catch (error) {
    if (left.signal.aborted) return;
    // The code says what kind of failure it was; messages of a conversation are in no error.
    const failure = error instanceof EngineError ? { error: error.message, code: error.code } : { error: 'internal error' };
    if (response.headersSent) response.end(`data: ${JSON.stringify(failure)}\n\n`);
    else response.status(error.code === 'ERR_BUSY' ? 429 : 400).json(failure);
  }
});

app.delete('/sessions/:id', (request, response) => {
  response.status(sessions.delete(request.params.id) ? 204 : 404).end();
});

const server = app.listen(Number(process.argv[3] ?? 3000), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}`);
});
process.once('SIGTERM', () => {
  server.close(() => model.dispose());
  server.closeIdleConnections();
});
