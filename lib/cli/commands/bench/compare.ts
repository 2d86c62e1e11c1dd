/** sigmoe bench compare: result files of several servers in one table. */
import { basename } from 'node:path';
import Table from 'cli-table3';
import { Command } from 'commander';
import { compareResults } from '../../../bench/index.js';
import { json } from '../../format.js';
import { readText } from '../../input.js';
import { write } from '../../terminal.js';

export function benchCompareCommand(): Command {
  return new Command('compare')
    .summary('put result files of sigmoe, vLLM and SGLang into one table')
    .description(
      'Reads results of `sigmoe bench serve`, `vllm bench serve` (--save-result) and SGLang bench_serving (--output-file). Results ' +
        'of the same load in one file count as repetitions: mean ± 95% confidence interval.',
    )
    .argument('<files...>', 'JSON files, or files of JSON lines')
    .option('--json', 'print JSON in place of the table')
    .addHelpText('after', '\nExample:\n  sigmoe bench compare ours.json vllm.json')
    .action(compare);
}

async function compare(paths: string[], flags: { json?: boolean }): Promise<void> {
  const files = await Promise.all(
    paths.map(async (path) => ({ name: basename(path), text: await readText(path, 'result file') })),
  );
  const { head, rows } = compareResults(files);
  if (flags.json) {
    const objects = rows.map((row) => Object.fromEntries(head.map((name, i) => [name, row[i] ?? ''])));
    return write(`${json(objects, 2)}\n`);
  }
  const right = head.map((_, i) => (i < 2 ? 'left' : 'right') as 'left' | 'right');
  const table = new Table({ head, colAligns: right, style: { head: [], border: [] } });
  table.push(...rows);
  await write(`${table.toString()}\n`);
}
