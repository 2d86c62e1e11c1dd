// npm run docs: the site of docs/ and of the API's comments, static files in build/site. build-docs holds the pages as
// TypeDoc reads them: with their titles, those of the backends among them, and one of all commands, written from what the
// commands say of themselves.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { prepareLibrary } from './prepare.mjs';
import { readJson, root, run, runMain } from './tools.mjs';

// Beside docs/, so that links to files of the repository hold.
const staging = join(root, 'build-docs');
const backends = ['cuda', 'ascend'].filter((name) => existsSync(join(root, 'kernels', name, 'README.md')));

await runMain(async () => {
  await prepareLibrary();
  rmSync(staging, { recursive: true, force: true });
  mkdirSync(staging);
  for (const name of readdirSync(join(root, 'docs'))) stage(name, readFileSync(join(root, 'docs', name), 'utf8'));
  for (const name of backends) stage(`${name}.md`, readFileSync(join(root, 'kernels', name, 'README.md'), 'utf8'));
  stage('commands.md', await commandReference());
  const { projectDocuments } = readJson(join(root, 'typedoc.json'));
  const present = projectDocuments.filter((path) => existsSync(join(root, path)));
  const typedoc = join(root, 'node_modules/typedoc/bin/typedoc');
  const documents = present.flatMap((path) => ['--projectDocuments', path]);
  const { status } = await run(process.execPath, [typedoc, ...documents, ...process.argv.slice(2)]);
  return status;
});

function stage(name, text) {
  const [, title = name] = /^# (.*)$/m.exec(text) ?? [];
  const linked = text.replace(/\(\.\.\/kernels\/(\w+)\/README\.md/g, (link, backend) =>
    backends.includes(backend) ? `(${backend}.md` : link,
  );
  writeFileSync(join(staging, name), `---\ntitle: ${JSON.stringify(title)}\n---\n\n${linked}`);
}

async function commandReference() {
  const { buildProgram, withSubcommands } = await import('../dist/cli/program.js');
  const sections = withSubcommands(buildProgram()).map((command) => {
    let help = '';
    command.configureOutput({ getOutHelpWidth: () => 110, writeOut: (text) => (help += text) });
    command.outputHelp();
    const names = [];
    for (let each = command; each; each = each.parent) names.unshift(each.name());
    return `## ${names.join(' ')}\n\n\`\`\`text\n${help.trimEnd()}\n\`\`\`\n`;
  });
  return `# Command reference\n\nWhat \`--help\` says, of every command.\n\n${sections.join('\n')}`;
}
