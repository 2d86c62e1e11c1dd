/** sigmoe generate: one answer, or a file of requests answered together. */
import { Command } from 'commander';
import type { GenerateRequest } from '../../index.js';
import { noteStats, printAnswer, resultJson } from '../answer.js';
import { CliError, EXIT_USAGE } from '../failure.js';
import { addEngineFlags, addSamplingFlags, type EngineFlags, type SamplingFlags, samplingOptions } from '../flags.js';
import { readPrompt, readStdin, readText } from '../input.js';
import { interruptible } from '../interrupt.js';
import { loadModel } from '../load.js';
import { write } from '../terminal.js';
import { answerBatch } from './batch.js';

interface Flags extends EngineFlags, SamplingFlags {
  file?: string;
  system?: string;
  messages?: string;
  tools?: string;
  raw?: boolean;
  batch?: string;
  json?: boolean;
  stats?: boolean;
}

export function generateCommand(): Command {
  const command = new Command('generate')
    .summary('answer one prompt')
    .description('Answers a prompt given as an argument, in a file, or on standard input; streams to standard output.')
    .argument('<model>', 'model folder, or owner/name of a hub')
    .argument('[prompt]', 'what to answer; "-" or nothing reads standard input')
    .option('-f, --file <path>', 'read the prompt from a file')
    .option('-s, --system <text>', 'system message before the prompt')
    .option('--messages <path>', 'a conversation instead of a prompt: JSON array of {role, content} ("-": standard input)')
    .option('--tools <path>', 'JSON array of tool definitions')
    .option('--raw', 'no chat template: continue the prompt as it stands')
    .option('--batch <path>', 'answer a file of requests, one JSON object or string a line, as JSON lines in their order')
    .option('--json', 'print one JSON object instead of streaming')
    .option('--stats', 'end with a line of figures on standard error')
    .addHelpText('after', '\nExample:\n  sigmoe generate models/nano "What is asthma?" --max-tokens 100 --temperature 0');
  return addSamplingFlags(addEngineFlags(command)).action(generate);
}

async function generate(path: string, prompt: string | undefined, flags: Flags): Promise<void> {
  refuseContradictions(prompt, flags);
  if (flags.batch !== undefined) return answerBatch(path, flags.batch, flags);
  const request = await readRequest(prompt, flags);
  await interruptible(async (signal) => {
    await using model = await loadModel(path, flags, signal);
    const generation = model.generate({ ...request, ...samplingOptions(flags), signal });
    const result = flags.json ? await generation.result : await printAnswer(generation);
    if (flags.json) await write(`${resultJson(result)}\n`);
    if (flags.stats) noteStats(result, model.info);
  });
}

// Pairs of which one would silently do nothing.
function refuseContradictions(prompt: string | undefined, flags: Flags): void {
  const given: Record<string, boolean> = {
    'a prompt': prompt !== undefined,
    '--file': flags.file !== undefined,
    '--messages': flags.messages !== undefined,
    '--system': flags.system !== undefined,
    '--tools': flags.tools !== undefined,
    '--raw': flags.raw === true,
    '--batch': flags.batch !== undefined,
    '--json': flags.json === true,
    '--stats': flags.stats === true,
    '--logprobs': flags.logprobs !== undefined,
  };
  const conflicts: Record<string, string[]> = {
    '--batch': ['a prompt', '--file', '--messages', '--system', '--tools', '--raw', '--stats'],
    '--messages': ['a prompt', '--file', '--system', '--raw'],
    '--raw': ['--system', '--tools'],
  };
  for (const [flag, others] of Object.entries(conflicts)) {
    const other = given[flag] && others.find((name) => given[name]);
    if (other) throw new CliError(`${flag} and ${other} exclude each other`, '', EXIT_USAGE);
  }
  if (given['--logprobs'] && !given['--json'] && !given['--batch']) {
    throw new CliError('--logprobs has nowhere to go', 'add --json', EXIT_USAGE);
  }
}

async function readRequest(argument: string | undefined, flags: Flags): Promise<GenerateRequest> {
  // As JSON text, so that numbers and key order of tools and calls reach the template unchanged.
  const tools = flags.tools === undefined ? {} : { tools: await readText(flags.tools, 'tools file') };
  if (flags.messages !== undefined) {
    const text = flags.messages === '-' ? await readStdin() : await readText(flags.messages, 'messages file');
    return { messages: text, ...tools };
  }
  const prompt = await readPrompt(argument, flags.file);
  if (flags.raw) return { prompt };
  const content = prompt.replace(/\r?\n$/, ''); // a file ends with a newline, a question does not
  if (content.trim() === '') throw new CliError('the prompt is empty', '', EXIT_USAGE);
  const system = flags.system === undefined ? [] : [{ role: 'system' as const, content: flags.system }];
  return { messages: [...system, { role: 'user', content }], ...tools };
}
