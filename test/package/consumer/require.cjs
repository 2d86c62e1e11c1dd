// Loaded by require, then by import: prints whether both gave the same objects, from which file, and what a model answers.
const sigmoe = require('sigmoe');

(async () => {
  const imported = await import('sigmoe');
  const names = Object.keys(imported).filter((name) => name !== 'default' && name !== 'module.exports');
  const different = names.filter((name) => sigmoe[name] !== imported[name]);
  const { Model, EngineError, NotFoundError, createClient } = sigmoe;
  const model = await Model.load(process.argv[2]);
  const messages = [{ role: 'user', content: 'What is asthma?' }];
  const { text } = await model.generate({ messages, temperature: 0, maxTokens: 12 }).result;
  const choice = await model.generate({ messages, maxTokens: 20, structured: { choice: ['yes', 'no'] } }).result;
  const ids = await model.tokenizer.encodeChatWith('{{ messages[0].content }}', messages);
  const answer = await createClient(model).chat.completions.create({ messages, max_tokens: 3 });
  await model.dispose();
  const error = await imported.Model.load('/no/such/folder').catch((thrown) => thrown);
  console.log(
    JSON.stringify({
      file: require.resolve('sigmoe'),
      names: names.length,
      different,
      text,
      choice: choice.text,
      custom: model.tokenizer.decode(ids),
      tokens: answer.usage.completion_tokens,
      errorIsOne: error instanceof EngineError && error instanceof NotFoundError,
    }),
  );
})();
