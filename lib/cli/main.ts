#!/usr/bin/env node
/** The sigmoe command: how any of its commands ends. */
import { describeFailure } from './failure.js';
import { buildProgram } from './program.js';
import { note, watchOutput } from './terminal.js';

/** Published commands of vLLM spell some flags with underscores: --gpu_memory_utilization. */
function withDashes(words: string[]): string[] {
  if (words[2] !== 'serve' && words[2] !== 'bench') return words;
  return words.map((word) => word.replace(/^--[a-z][\w-]*/, (flag) => flag.replaceAll('_', '-')));
}

watchOutput();
try {
  await buildProgram().parseAsync(withDashes(process.argv));
} catch (error) {
  const { line, status } = describeFailure(error);
  if (line !== '') note(`sigmoe: ${line}`);
  if (process.argv.includes('--verbose') && error instanceof Error && line !== '') note(error.stack ?? '');
  process.exitCode = status;
}
