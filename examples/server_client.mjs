// A conversation with a server, streamed. Any client of the OpenAI API works; this one is Node's own fetch.
//   sigmoe serve models/nano --port 8000
//   node examples/server_client.mjs [http://127.0.0.1:8000]
const server = process.argv[2] ?? 'http://127.0.0.1:8000';
const messages = [];

for (const question of ['What is hypertension?', 'How is it treated?']) {
  console.log(`> ${question}`);
  messages.push({ role: 'user', content: question });
  let answer = '';
  for await (const chunk of stream({ messages, max_tokens: 60, temperature: 0.6, seed: 7 })) {
    const text = chunk.choices[0]?.delta.content ?? '';
    process.stdout.write(text);
    answer += text;
  }
  console.log('\n');
  messages.push({ role: 'assistant', content: answer });
}

/** The chunks of a streamed answer: lines of server-sent events, the last of which says [DONE]. */
async function* stream(body) {
  const headers = process.env.OPENAI_API_KEY ? { authorization: `Bearer ${process.env.OPENAI_API_KEY}` } : {};
  const request = { method: 'POST', headers, body: JSON.stringify({ ...body, stream: true }) };
  const response = await fetch(`${server}/v1/chat/completions`, request);
  if (!response.ok) throw new Error((await response.json()).error.message);
  let rest = '';
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data: ') || line === 'data: [DONE]') continue;
      const chunk = JSON.parse(line.slice('data: '.length));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}
