/** sigmoe bundle: one archive for a machine without a network; bundle verify and bundle install use it there. */
import { Command } from 'commander';
import { type BundleFacts, type BundleProgress, installBundle, nameOf, readBundle, writeBundle } from '../../bundle/index.js';
import { CliError, EXIT_USAGE } from '../failure.js';
import { addModelFlags, type ModelFlags } from '../flags.js';
import { bytes, json } from '../format.js';
import { interruptible } from '../interrupt.js';
import { findModel } from '../load.js';
import { progress } from '../progress.js';
import { dim, note, write } from '../terminal.js';

interface Flags extends ModelFlags {
  withoutModel?: boolean;
  draft?: string;
  json?: boolean;
}

interface CheckFlags {
  sha256?: string;
  json?: boolean;
}

export function bundleCommand(): Command {
  const command = new Command('bundle')
    .summary('pack everything for a machine without a network')
    .enablePositionalOptions()
    .description('Makes one archive of this sigmoe, the packages and libraries it needs, a model, and a list of checksums.')
    .argument('<model-and-file...>', 'a model (a folder, or owner/name of a hub), and the archive to make')
    .option('--without-model', 'only the program: name just the archive')
    .option('--draft <model>', 'a draft of the model, to come along')
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      '\nExample:\n  sigmoe bundle MedAIBase/AntAngelMed-FP8 antangelmed.tar\n  sigmoe bundle --without-model sigmoe.tar',
    );
  addModelFlags(command).action((words: string[], flags: Flags) => interruptible((signal) => make(words, flags, signal)));
  command.addCommand(
    new Command('verify')
      .summary('check an archive')
      .description('Reads an archive whole and compares every file with its checksum.')
      .argument('<file>', 'the archive')
      .option('--sha256 <hex>', 'what the archive itself must be')
      .option('--json', 'print one JSON object')
      .addHelpText('after', '\nExample:\n  sigmoe bundle verify antangelmed.tar')
      .action((file: string, flags: CheckFlags) => interruptible((signal) => verify(file, flags, signal))),
  );
  command.addCommand(
    new Command('install')
      .summary('unpack an archive')
      .description('Checks an archive and unpacks it. The folder then holds a program called sigmoe and the models.')
      .argument('<file>', 'the archive')
      .argument('<folder>', 'where to; it must not exist yet')
      .option('--json', 'print one JSON object')
      .addHelpText('after', '\nExample:\n  sigmoe bundle install antangelmed.tar /opt/sigmoe')
      .action((file: string, folder: string, flags: CheckFlags) =>
        interruptible((signal) => install(file, folder, flags, signal)),
      ),
  );
  return command;
}

async function make(words: string[], flags: Flags, signal: AbortSignal): Promise<void> {
  const expected = flags.withoutModel ? 1 : 2;
  if (words.length !== expected) {
    const usage = flags.withoutModel ? 'sigmoe bundle --without-model FILE' : 'sigmoe bundle MODEL FILE';
    throw new CliError(`expected ${expected} arguments, found ${words.length}`, usage, EXIT_USAGE);
  }
  const file = words.at(-1) ?? '';
  const models: { name: string; folder: string }[] = [];
  const [model] = flags.withoutModel ? [] : words;
  if (model !== undefined) {
    const found = await findModel(model, flags, signal);
    models.push({ name: nameOf(model), folder: found.path });
    if (flags.draft !== undefined) models.push({ name: nameOf(flags.draft), folder: found.flags.draft ?? '' });
  }
  const facts = await withBar('bundling', (onProgress) => writeBundle(file, { models, onProgress, signal }));
  await tell(facts, flags, `${facts.path}\n`);
}

async function verify(file: string, flags: CheckFlags, signal: AbortSignal): Promise<void> {
  const facts = await withBar('checking', (onProgress) => readBundle(file, { onProgress, signal }));
  if (flags.sha256 !== undefined && flags.sha256.toLowerCase() !== facts.sha256) {
    throw new CliError(`${file}: SHA-256 ${flags.sha256} was asked, ${facts.sha256} found`, 'do not use it');
  }
  await tell(facts, flags, `${facts.path}: as its checksums say\n`);
}

async function install(file: string, folder: string, flags: CheckFlags, signal: AbortSignal): Promise<void> {
  const installed = await withBar('installing', (onProgress) => installBundle(file, folder, { onProgress, signal }));
  const [model] = installed.models;
  if (!flags.json)
    note(dim(`next: ${installed.program} ${model === undefined ? '--help' : `generate ${model} "What is asthma?"`}`));
  await tell(installed, flags, `${installed.program}\n`);
}

async function withBar<T>(label: string, body: (onProgress: (progress: BundleProgress) => void) => Promise<T>): Promise<T> {
  const bar = progress(label);
  try {
    return await body(({ bytesDone, bytesTotal }) =>
      bar.update(bytesDone, bytesTotal, `${bytes(bytesDone)} of ${bytes(bytesTotal)}`),
    );
  } finally {
    bar.stop();
  }
}

async function tell(facts: BundleFacts, flags: { json?: boolean }, line: string): Promise<void> {
  const { manifest, ...rest } = facts;
  const { files, ...about } = manifest;
  if (flags.json) return write(`${json({ ...rest, ...about, files: files.length }, 2)}\n`);
  const models = about.models.length === 0 ? 'no model' : about.models.join(', ');
  note(
    dim(`sigmoe ${about.sigmoe} for ${about.platform}-${about.arch}, ${models}: ${files.length} files, ${bytes(facts.bytes)}`),
  );
  note(dim(`SHA-256 of the archive: ${facts.sha256}`));
  await write(line);
}
