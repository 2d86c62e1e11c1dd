/** sigmoe pull: downloads a model of a hub into the cache that its Python library uses too. */
import { Command } from 'commander';
import { type PullResult, pull, type Source } from '../../index.js';
import { number } from '../flags.js';
import { bytes, json } from '../format.js';
import { interruptible } from '../interrupt.js';
import { downloadProgress } from '../progress.js';
import { dim, note, write } from '../terminal.js';

interface Flags {
  source?: Source;
  revision?: string;
  include?: string[];
  exclude?: string[];
  maxWorkers?: number;
  offline?: boolean;
  json?: boolean;
}

const HELP = `
Examples:
  sigmoe pull MedAIBase/AntAngelMed-FP8
  sigmoe pull MedAIBase/AntAngelMed-FP8 --source modelscope
  sigmoe pull MedAIBase/AntAngelMed-FP8 --revision 0123456789abcdef0123456789abcdef01234567

Ended early, by Ctrl-C or anything else, it goes on from there the next time. Gated models: HF_TOKEN (MODELSCOPE_API_TOKEN).
Mirrors and caches: HF_ENDPOINT, HF_HOME (MODELSCOPE_ENDPOINT, MODELSCOPE_CACHE). Proxies: HTTPS_PROXY, NO_PROXY.`;

export function pullCommand(): Command {
  return new Command('pull')
    .summary('download a model')
    .description('Downloads a model of a hub into the cache, verifies every file, and prints the folder.')
    .argument('<id>', 'owner/name, or owner/name@revision')
    .option('--source <hub>', 'huggingface (default) | modelscope')
    .option('--revision <name>', 'a branch, a tag or a commit')
    .option('--include <pattern>', 'only files that match, such as *.json (may be repeated)', collect)
    .option('--exclude <pattern>', 'no files that match (may be repeated)', collect)
    .option('--max-workers <n>', 'requests at once (default: 8)', number)
    .option('--offline', 'make no connection: the model is in the cache, or the command fails')
    .option('--json', 'print one JSON object')
    .addHelpText('after', HELP)
    .action((id: string, flags: Flags) => interruptible((signal) => run(id, flags, signal)));
}

async function run(id: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const { json: asJson, source, revision, include, exclude, maxWorkers, offline } = flags;
  const bars = downloadProgress();
  let result: PullResult;
  try {
    const options = { source, revision, include, exclude, maxWorkers, offline };
    result = await pull(id, { ...options, onProgress: bars.update, onNote: note, signal });
  } finally {
    bars.stop();
  }
  if (!asJson) {
    const { commit, files, downloadedBytes } = result;
    const at = commit === '' || commit === result.revision ? result.revision : `${result.revision}, commit ${commit}`;
    note(
      dim(
        `${result.id} at ${at}: ${files} ${files === 1 ? 'file' : 'files'} of ${bytes(result.bytes)}, ${bytes(downloadedBytes)} downloaded`,
      ),
    );
  }
  await write(asJson ? `${json(result, 2)}\n` : `${result.path}\n`);
}

function collect(text: string, before: string[] = []): string[] {
  return [...before, text];
}
